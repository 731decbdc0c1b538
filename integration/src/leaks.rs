//! What a test's containers put on the host, before and after.
//!
//! A [`Leaks`] is taken while nothing runs, and again later: teardown is done behind the reply, so
//! the later one is waited for. Idle supervisors that a server keeps ready are replaced by others
//! with other pids and names, so numbers are left out and things are counted by name.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

use crate::proc::is_real_directory;
use crate::server::Server;
use crate::wait::{DEADLINE, wait_until};
use crate::world::World;
use crate::{cgroups, proc};

/// Levels of the store that are looked at: the lists of what is stored, not what is in it.
const STORE_DEPTH: usize = 2;

/// Everything on the host that carries a test's tag, counted by name.
#[derive(Debug, PartialEq, Eq)]
pub struct Leaks {
    counts: BTreeMap<String, usize>,
}

impl Leaks {
    /// What is there now: processes, network namespaces, cgroups, mounts, loops, files of the runtime
    /// directory and of the store's lists, and open files of the server if one is given.
    pub fn now(world: &World, server: Option<&Server<'_>>) -> Self {
        let mut leaks = Self {
            counts: BTreeMap::new(),
        };
        let processes = proc::tagged(world.tag());
        leaks.add(
            "process",
            processes.iter().map(|process| process.name.clone()),
        );
        let namespaces = proc::network_namespaces(&processes);
        leaks.add("network namespace", namespaces.into_iter());
        let cgroups = cgroups::tagged(world.tag());
        leaks.add(
            "cgroup",
            cgroups.iter().map(|path| path.display().to_string()),
        );
        leaks.add("mount", proc::mounts_naming(world.tag()).into_iter());
        leaks.add("loop", proc::loops_naming(world.tag()).into_iter());
        // Timelines outlive their containers, for a while and in bounded space.
        let timelines = world.runtime_dir().join("timeline");
        let files_of = files(&world.runtime_dir(), usize::MAX).into_iter();
        let files_of = files_of.filter(|file| !Path::new(file).starts_with(&timelines));
        leaks.add("file", files_of);
        leaks.add("stored", files(&world.store(), STORE_DEPTH).into_iter());
        if let Some(server) = server {
            leaks
                .counts
                .insert("open files of the server".to_owned(), server.open_files());
        }
        leaks
    }

    fn add(&mut self, kind: &str, names: impl Iterator<Item = String>) {
        for name in names {
            let key = format!("{kind} {}", without_numbers(&name));
            *self.counts.entry(key).or_default() += 1;
        }
    }

    /// What is there in greater number than it was, a line each.
    fn beyond(&self, before: &Self) -> Vec<String> {
        let more = self.counts.iter().filter_map(|(name, now)| {
            let then = before.counts.get(name).copied().unwrap_or_default();
            (*now > then).then(|| format!("{name}: {then} before, {now} now"))
        });
        more.collect()
    }

    /// Waits until nothing is there beyond what this one saw.
    pub fn expect_no_more(&self, world: &World, server: Option<&Server<'_>>) -> Result<()> {
        let mut left = Vec::new();
        let settled = wait_until("nothing is left behind", DEADLINE, || {
            left = Self::now(world, server).beyond(self);
            Ok(left.is_empty())
        });
        if settled.is_err() {
            bail!("left behind:\n  {}", left.join("\n  "));
        }
        Ok(())
    }
}

/// Numbers and generated ids replaced by one sign, so that a thing and its successor count as one.
fn without_numbers(name: &str) -> String {
    let mut words = Vec::new();
    for word in name.split_inclusive(['/', '.', ' ', ':', '[', ']', '(', ')']) {
        let end = word.trim_end_matches(['/', '.', ' ', ':', '[', ']', '(', ')']);
        let generated = end.len() >= 8
            && end.contains(|c: char| c.is_ascii_digit())
            && end.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
        let number = !end.is_empty() && end.chars().all(|c| c.is_ascii_digit());
        if generated || number {
            words.push(format!("#{}", &word[end.len()..]));
        } else {
            words.push(word.to_owned());
        }
    }
    words.concat()
}

fn files(directory: &Path, depth: usize) -> Vec<String> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(directory) else {
        return found;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if depth > 1 && is_real_directory(&path) {
            found.extend(files(&path, depth - 1));
        }
        found.push(path.display().to_string());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_count_as_one() {
        assert_eq!(
            without_numbers("/run/shims/7f9c-12ab/s.1"),
            "/run/shims/#/s.#"
        );
        assert_eq!(without_numbers("net:[4026531840]"), "net:[#]");
        assert_eq!(without_numbers("/store/layers"), "/store/layers");
        assert_eq!(without_numbers("/a/web-1/x"), "/a/web-1/x");
    }
}
