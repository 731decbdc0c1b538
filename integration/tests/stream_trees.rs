//! Random trees, many entries and large holes: into a container and back, GNU tar at both ends.
//!
//! Trees come from a seed, which a failure names. More of them, or larger ones, on request:
//! `GARDEN_STREAM_SEED` (the first one), `GARDEN_STREAM_TREES`, `GARDEN_STREAM_ENTRIES`,
//! `GARDEN_STREAM_SPARSE_GB`.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use garden_integration::{App, check};
use rustix::fs::{AtFlags, CWD, Mode, Timespec, Timestamps, XattrFlags};
use sha2::{Digest as _, Sha256};

/// A number from the environment.
fn wish(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// SplitMix64: enough to choose by, and the same everywhere.
struct Choice(u64);

impl Choice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`, which is not zero.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn of<'t, T>(&mut self, all: &'t [T]) -> &'t T {
        let count = all.len() as u64;
        &all[usize::try_from(self.below(count)).unwrap_or(0)]
    }

    fn bytes(&mut self, length: u64) -> Vec<u8> {
        let words = length.div_ceil(8);
        let all = (0..words).flat_map(|_| self.next().to_le_bytes());
        all.take(usize::try_from(length).unwrap_or(0)).collect()
    }

    /// A name that is unlike the others by its number.
    fn name(&mut self, number: usize) -> OsString {
        let start = match self.below(8) {
            0 => vec![b'l'; 240],
            1 => b"line\nbreak\t and space ".to_vec(),
            2 => "gr\u{fc}n-\u{1f331}".as_bytes().to_vec(),
            3 => vec![0xff, 0x80, b'x', 1],
            4 => b"-dash=100%25\\n".to_vec(),
            5 => b".hidden".to_vec(),
            _ => b"plain".to_vec(),
        };
        OsString::from_vec([start, number.to_string().into_bytes()].concat())
    }
}

/// Makes a tree with some of everything that a tar can hold without root.
fn grow(root: &Path, choice: &mut Choice) -> Result<()> {
    fs::create_dir(root)?;
    let mut directories = vec![root.to_owned()];
    let mut linkable: Vec<PathBuf> = Vec::new();
    let mut all = Vec::new();
    for number in 0..usize::try_from(10 + choice.below(60))? {
        let parent = choice.of(&directories).clone();
        let path = parent.join(choice.name(number));
        match choice.below(12) {
            0..=2 => {
                fs::create_dir(&path)?;
                if path.as_os_str().len() < 2500 {
                    directories.push(path.clone());
                }
            }
            3..=5 => {
                let length = match choice.below(4) {
                    0 => 0,
                    1 => 512 * choice.below(20),
                    2 => choice.below(5000),
                    _ => choice.below(400_000),
                };
                fs::write(&path, choice.bytes(length))?;
                linkable.push(path.clone());
            }
            6 => {
                holes(&path, choice)?;
                linkable.push(path.clone());
            }
            7 | 8 if !linkable.is_empty() => {
                fs::hard_link(choice.of(&linkable), &path)?;
            }
            9 => {
                // Second names of pipes are beyond GNU tar.
                rustix::fs::mkfifoat(CWD, &path, Mode::from_raw_mode(0o644))?;
            }
            _ => {
                let target = match choice.below(6) {
                    0 => OsString::from("../../../etc/passwd"),
                    1 => OsString::from("/nowhere/at/all"),
                    2 => OsString::from_vec([b"up/..".to_vec(), vec![b'/'; 3000]].concat()),
                    3 => OsString::from_vec(vec![b't'; 150]),
                    _ => choice.name(number),
                };
                std::os::unix::fs::symlink(target, &path)?;
                linkable.push(path.clone());
            }
        }
        all.push(path);
    }
    // From the inside out, what is in a directory being younger than it.
    for path in all.iter().rev() {
        dress(path, choice)?;
    }
    Ok(())
}

fn holes(path: &Path, choice: &mut Choice) -> Result<()> {
    let file = File::create(path)?;
    let length = choice.below(3 << 20);
    file.set_len(length)?;
    for _ in 0..choice.below(6) {
        let offset = choice.below(length + 1);
        let most = (length - offset).min(200_000);
        let piece = choice.below(most + 1);
        file.write_all_at(&choice.bytes(piece), offset)?;
    }
    Ok(())
}

/// Mode, extended attributes and time.
fn dress(path: &Path, choice: &mut Choice) -> Result<()> {
    let kind = fs::symlink_metadata(path)?.file_type();
    if kind.is_file() || kind.is_dir() {
        for number in 0..choice.below(3) {
            let name = choice.of(&["user.plain", "user.a=b", "user.100%3D"]);
            let value = match choice.below(3) {
                0 => b"1\n22 path=/etc/passwd\n\0".to_vec(),
                length => choice.bytes(length * 100),
            };
            let name = format!("{name}.{number}");
            rustix::fs::lsetxattr(path, name.as_str(), &value, XattrFlags::empty())
                .context("the test's directory takes no extended attributes")?;
        }
    }
    if !kind.is_symlink() {
        let mode = *choice.of(&[0o644, 0o755, 0o600, 0o444, 0o4755, 0o1777, 0o2770, 0]);
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    let seconds = match choice.below(5) {
        0 => -i64::try_from(choice.below(1 << 30))?,
        1 => i64::try_from(choice.below(1 << 33))?,
        _ => i64::try_from(choice.below(1 << 31))?,
    };
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(choice.below(1_000_000_000))?,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    Ok(rustix::fs::utimensat(
        CWD,
        path,
        &times,
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

/// What must be the same at both ends.
#[derive(Debug, PartialEq, Eq)]
struct Node {
    kind: char,
    mode: u32,
    mtime: i64,
    size: u64,
    /// A link's target, or the digest of a content.
    content: Vec<u8>,
    /// The first path of the same inode.
    same_as: PathBuf,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

fn look(root: &Path) -> Result<BTreeMap<PathBuf, Node>> {
    let mut found = BTreeMap::new();
    let mut first = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    let mut paths = Vec::new();
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                left.push(entry.path());
            }
            paths.push(entry.path());
        }
    }
    paths.sort();
    for path in paths {
        let short = path.strip_prefix(root)?.to_owned();
        let stat = fs::symlink_metadata(&path)?;
        let kind = stat.file_type();
        let (letter, content) = if kind.is_dir() {
            ('d', Vec::new())
        } else if kind.is_symlink() {
            ('l', fs::read_link(&path)?.into_os_string().into_vec())
        } else if kind.is_fifo() {
            ('p', Vec::new())
        } else {
            let mut hash = Sha256::new();
            let mut file = File::open(&path)?;
            let mut piece = vec![0; 1 << 20];
            while let read @ 1.. = file.read(&mut piece)? {
                hash.update(&piece[..read]);
            }
            ('-', hash.finalize().to_vec())
        };
        let same_as = first.entry((stat.dev(), stat.ino()));
        let node = Node {
            kind: letter,
            mode: if letter == 'l' {
                0
            } else {
                stat.mode() & 0o7777
            },
            mtime: stat.mtime(),
            size: if kind.is_dir() { 0 } else { stat.size() },
            content,
            same_as: same_as.or_insert_with(|| short.clone()).clone(),
            xattrs: xattrs(&path)?,
        };
        found.insert(short, node);
    }
    Ok(found)
}

fn xattrs(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, &mut names[..])?;
    let mut found = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0) {
        if name.starts_with(b"user.") {
            let mut value = vec![0; 4096];
            let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..])?;
            found.insert(name.to_vec(), value[..length].to_vec());
        }
    }
    Ok(found)
}

fn compare(expected: &BTreeMap<PathBuf, Node>, seen: &BTreeMap<PathBuf, Node>) -> Result<()> {
    for (path, node) in expected {
        let other = seen.get(path);
        let other = other.with_context(|| format!("{path:?} is gone; it was {node:?}"))?;
        ensure!(node == other, "{path:?} is {other:?} instead of {node:?}");
    }
    let more = seen.keys().find(|path| !expected.contains_key(*path));
    ensure!(more.is_none(), "{more:?} is new");
    Ok(())
}

#[test]
fn random_trees_come_back() {
    check(|world| {
        let app = App::start(world)?;
        let first = wish("GARDEN_STREAM_SEED", 1);
        for seed in first..first + wish("GARDEN_STREAM_TREES", 6) {
            let mut choice = Choice(seed);
            let tree = world.directory().join(format!("tree-{seed}"));
            let back = world.directory().join(format!("back-{seed}"));
            grow(&tree, &mut choice)?;
            fs::create_dir(&back)?;
            let format = *choice.of(&[
                "--format=gnu",
                "--format=pax --xattrs",
                "--format=pax --sparse-version=0.0 --xattrs",
                "--format=pax --sparse-version=0.1 --xattrs",
            ]);
            let mut expected = look(&tree)?;
            for node in expected.values_mut() {
                // What an unpacker without special rights makes of it, with a umask of 022.
                node.mode &= 0o755;
                if !format.contains("xattrs") {
                    node.xattrs.clear();
                }
            }
            let (from, to) = (tree.display(), back.display());
            let outcome = app.cli().shell(&format!(
                "set -e; tar -S {format} -C {from} -cf - . | $garden stream-in app /in-{seed}
                $garden stream-out app /in-{seed}/ | tar --xattrs --xattrs-include='*' -C {to} -xpf -
                $garden exec app -- rm -rf /in-{seed}"
            ))?;
            outcome
                .expect_code(0)
                .with_context(|| format!("seed {seed}, {format}"))?;
            compare(&expected, &look(&back)?).with_context(|| format!("seed {seed}, {format}"))?;
            fs::remove_dir_all(&tree)?;
            fs::remove_dir_all(&back)?;
        }
        app.end()
    });
}

#[test]
fn many_entries_go_both_ways() {
    check(|world| {
        let app = App::start(world)?;
        let count = wish("GARDEN_STREAM_ENTRIES", 5_000);
        let path = world.directory().join("many.tar");
        let mut tar = tar::Builder::new(std::io::BufWriter::new(File::create(&path)?));
        for number in 0..count {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_mtime(number);
            header.set_size(0);
            let name = format!("d{}/f{number}", number % 100);
            tar.append_data(&mut header, name, std::io::empty())?;
        }
        tar.into_inner()?.into_inner().context("many.tar")?;
        let outcome = app.cli().shell(&format!(
            "set -e; $garden stream-in app /many <{}
            $garden stream-out app /many/ | tar -t | grep -c /f",
            path.display()
        ))?;
        outcome.expect_code(0)?;
        ensure!(outcome.stdout.trim() == count.to_string(), "{outcome:?}");
        let inside = app.exec("find /many -type f | wc -l")?;
        ensure!(inside.trim() == count.to_string(), "{inside} of {count}");
        app.end()
    });
}

#[test]
fn gigabytes_of_holes_cost_nothing() {
    check(|world| {
        let app = App::start(world)?;
        let size = wish("GARDEN_STREAM_SPARSE_GB", 8) << 30;
        let (from, back) = (
            world.directory().join("huge"),
            world.directory().join("back"),
        );
        fs::create_dir(&from)?;
        fs::create_dir(&back)?;
        let file = File::create(from.join("huge"))?;
        file.set_len(size)?;
        file.write_all_at(b"front", 4096)?;
        file.write_all_at(b"end", size - 3)?;
        let (from, to) = (from.display(), back.display());
        let outcome = app.cli().shell(&format!(
            "set -e; tar -S -C {from} -cf - huge | $garden stream-in app /
            $garden stream-out app /huge >{to}/tar
            tar -C {to} -xf {to}/tar; $garden exec app -- du -k /huge"
        ))?;
        outcome.expect_code(0)?;
        let held = outcome
            .stdout
            .split_whitespace()
            .next()
            .context("no size")?;
        ensure!(held.parse::<u64>()? < 1024, "{held} KiB inside");
        ensure!(
            fs::metadata(back.join("tar"))?.len() < 1 << 20,
            "all of it was sent"
        );
        let file = File::open(back.join("huge"))?;
        let stat = file.metadata()?;
        ensure!(stat.size() == size && stat.blocks() < 2048, "{stat:?}");
        let mut ends = [0; 8];
        file.read_exact_at(&mut ends[..5], 4096)?;
        file.read_exact_at(&mut ends[5..], size - 3)?;
        ensure!(&ends == b"frontend", "{ends:?}");
        app.end()
    });
}
