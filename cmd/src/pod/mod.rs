//! Pod files: a container with its sidecars, checks, mounts and limits, as TOML.
//!
//! [`read`] turns a file into what the server is asked for, and refuses what makes no sense with
//! the line and the key; nothing is asked of a server here. `docs/pod.md` describes the format to
//! its users, `docs/pod.toml` is an example that a test runs. Used by `garden up` and `garden down`.

mod file;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use garden::checks::CheckSpec;
use garden::model::{
    BindMount, ContainerSpec, DiskLimit, Handle, ImageRef, Limits, ProcessId, ProcessSpec,
};
use sha2::{Digest as _, Sha256};

use crate::commands::{MAIN, start};

/// Where a container keeps what its file said, to be compared.
pub(crate) const DIGEST: &str = "garden.pod";

/// What a file asks for.
#[derive(Debug)]
pub(crate) struct Pod {
    /// The name of its container.
    pub(crate) name: Handle,
    /// The container.
    pub(crate) container: ContainerSpec,
    /// Its own process, if it has one.
    pub(crate) main: Option<ProcessSpec>,
    /// Its sidecars, in the order in which they are started.
    pub(crate) peas: Vec<ProcessSpec>,
    /// Changes with whatever the file says.
    pub(crate) digest: String,
}

impl Pod {
    /// Everything that it runs, in order: sidecars first, as its own process may need them.
    pub(crate) fn processes(&self) -> impl Iterator<Item = &ProcessSpec> {
        self.peas.iter().chain(&self.main)
    }
}

/// Reads a file.
pub(crate) fn read(path: &Path) -> Result<Pod> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the pod file {}", path.display()))?;
    let absolute = std::path::absolute(path)?;
    let beside = absolute.parent().unwrap_or(Path::new("/"));
    parse(&text, beside).map_err(|error| error.context(path.display().to_string()))
}

/// Reads a file's text; relative paths in it are beside it.
fn parse(text: &str, beside: &Path) -> Result<Pod> {
    let read: file::Pod = toml::from_str(text).map_err(|error| located(text, &error))?;
    if read.version != 1 {
        bail!("version = {}: this garden knows version 1", read.version);
    }
    let digest = Sha256::digest(format!("{}\n{text}", beside.display()));
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut pod = Pod {
        name: read.name.clone(),
        main: main(&read)?,
        peas: Vec::new(),
        container: container(&read, beside)?,
        digest,
    };
    let kept = [(DIGEST.to_owned(), pod.digest.clone())];
    pod.container.properties.extend(kept);
    if let Some(main) = &pod.main {
        let entry = start::Entry::new(main).to_text()?;
        (pod.container.properties).insert(start::PROPERTY.to_owned(), entry);
    }
    for pea in &read.peas {
        let spec = sidecar(pea, beside)?;
        let taken = pod.processes().any(|other| other.id == spec.id);
        if taken {
            bail!("peas.name = {:?}: another one has this name", pea.name);
        }
        pod.peas.push(spec);
    }
    Ok(pod)
}

/// A mistake with its line and key, in one line.
fn located(text: &str, error: &toml::de::Error) -> anyhow::Error {
    let message = error.message().trim().replace('\n', ", ");
    let Some(span) = error.span() else {
        return anyhow!("{message}");
    };
    let before = text.get(..span.start).unwrap_or(text);
    let number = before.matches('\n').count() + 1;
    let line = text.lines().nth(number - 1).unwrap_or_default().trim();
    let key = line.split('=').next().unwrap_or_default().trim();
    if key.is_empty() {
        return anyhow!("line {number}: {message}");
    }
    anyhow!("line {number}, {key}: {message}")
}

fn container(read: &file::Pod, beside: &Path) -> Result<ContainerSpec> {
    let checks = read.checks.iter().map(check).collect::<Result<_>>()?;
    let limits = limits(&read.limits, disk(&read.limits));
    Ok(ContainerSpec {
        handle: Some(read.name.clone()),
        image: Some(image(&read.image, beside)?),
        env: environment(&read.env),
        bind_mounts: mounts(&read.mounts, beside),
        properties: read.properties.clone(),
        privileged: read.privileged,
        read_only: read.read_only,
        limits,
        checks,
        ..ContainerSpec::default()
    })
}

fn main(read: &file::Pod) -> Result<Option<ProcessSpec>> {
    let Some((path, args)) = read.command.split_first() else {
        if read.user.is_some() || read.workdir.is_some() {
            bail!("user and workdir are of the command: give a command");
        }
        return Ok(None);
    };
    Ok(Some(ProcessSpec {
        id: Some(MAIN.parse::<ProcessId>()?),
        path: path.clone(),
        args: args.to_vec(),
        user: read.user.clone(),
        dir: read.workdir.clone(),
        log_bytes: Some(start::LOG_BYTES),
        ..ProcessSpec::default()
    }))
}

fn sidecar(pea: &file::Pea, beside: &Path) -> Result<ProcessSpec> {
    let Some((path, args)) = pea.command.split_first() else {
        bail!("peas.command of {:?} is empty: name a program", pea.name);
    };
    Ok(ProcessSpec {
        id: Some(pea.name.clone()),
        path: path.clone(),
        args: args.to_vec(),
        env: environment(&pea.env),
        user: pea.user.clone(),
        dir: pea.workdir.clone(),
        image: Some(image(&pea.image, beside)?),
        own_limits: pea.limits.as_ref().map(|own| limits(own, None)),
        disk: pea.limits.as_ref().and_then(disk),
        bind_mounts: mounts(&pea.mounts, beside),
        log_bytes: Some(start::LOG_BYTES),
        ..ProcessSpec::default()
    })
}

fn limits(read: &file::Limits, disk: Option<DiskLimit>) -> Limits {
    Limits {
        memory_bytes: read.memory,
        pids: read.pids,
        cpu_shares: read.cpu_shares,
        cpu_millis: read.cpus,
        disk,
        ..Limits::default()
    }
}

fn disk(read: &file::Limits) -> Option<DiskLimit> {
    read.disk.map(|bytes| DiskLimit {
        bytes: Some(bytes),
        ..DiskLimit::default()
    })
}

/// An image; one that is a file is beside the pod file.
fn image(text: &str, beside: &Path) -> Result<ImageRef> {
    let file = beside.join(text);
    if !text.contains("://") && (file.exists() || text.starts_with('.')) {
        return crate::commands::image(&file.to_string_lossy());
    }
    crate::commands::image(text)
}

fn mounts(read: &[file::Mount], beside: &Path) -> Vec<BindMount> {
    let mount = |mount: &file::Mount| BindMount {
        source: beside.join(&mount.source),
        destination: PathBuf::from(&mount.destination),
        writable: !mount.read_only,
    };
    read.iter().map(mount).collect()
}

fn environment(read: &BTreeMap<String, String>) -> Vec<String> {
    let pairs = read.iter();
    pairs.map(|(key, value)| format!("{key}={value}")).collect()
}

fn check(read: &file::Check) -> Result<CheckSpec> {
    let check = read.spec()?;
    check.validate()?;
    Ok(check)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> String {
        format!("{:#}", parse(text, Path::new("/pods")).unwrap_err())
    }

    const LEAST: &str = "version = 1\nname = 'a'\nimage = '/i.tar'\n";

    #[test]
    fn the_example_of_the_documentation_is_understood() {
        let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/pod.toml");
        let pod = read(Path::new(docs)).unwrap();
        assert_eq!(pod.name.as_str(), "shop");
        assert_eq!(pod.processes().count(), 2);
        assert_eq!(pod.container.checks.len(), 1);
        assert_eq!(pod.container.limits.memory_bytes, Some(64 << 20));
        assert!(pod.container.properties.contains_key(DIGEST));
    }

    #[test]
    fn a_mistake_is_told_with_its_line_and_key() {
        assert_eq!(
            wrong(&format!("{LEAST}[limits]\nmemory = 'much'\n")),
            "line 5, memory: \"much\" is not a size: give a number of bytes, or one with a unit of \
             1024, like 64M, 512k, 2G"
        );
        let unknown = wrong(&format!("{LEAST}comand = ['x']\n"));
        assert!(
            unknown.starts_with("line 4, comand: unknown field"),
            "{unknown}"
        );
        let missing = wrong("version = 1\nname = 'a'\n");
        assert!(missing.contains("missing field `image`"), "{missing}");
        let handle = wrong("version = 1\nname = 'a/b'\nimage = 'x'\n");
        assert!(
            handle.starts_with("line 2, name: '/' is not allowed"),
            "{handle}"
        );
        assert!(wrong(&LEAST.replace('1', "2")).contains("version = 2"));
    }

    #[test]
    fn sidecars_have_names_of_their_own() {
        let pea = "[[peas]]\nname = 'p'\nimage = '/i.tar'\ncommand = ['x']\n";
        assert!(wrong(&format!("{LEAST}{pea}{pea}")).contains("another one has this name"));
        let main = pea.replace("'p'", "'main'");
        assert!(wrong(&format!("{LEAST}command = ['x']\n{main}")).contains("another one"));
    }

    #[test]
    fn paths_are_beside_the_file() {
        let text = format!("{LEAST}[[mounts]]\nsource = 'data'\ndestination = '/data'\n");
        let pod = parse(&text, Path::new("/pods")).unwrap();
        let mount = &pod.container.bind_mounts[0];
        assert_eq!(mount.source, Path::new("/pods/data"));
        assert!(mount.writable);
        let elsewhere = parse(&text, Path::new("/other")).unwrap();
        assert_ne!(pod.digest, elsewhere.digest);
    }
}
