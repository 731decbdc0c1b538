//! Networks by CNI plugins, after the specification 1.0 (and 0.3, 0.4).
//!
//! [`Cni`] runs the chain of an operator's configuration: ADD from the first plugin to the last, each
//! told the result of those before; DEL backwards, also after a restart and also for what was never
//! complete; CHECK in between. Every call blocks for as long as plugins run. It knows nothing of the
//! manager, and calls for different containers may run side by side; for one container they must not.

mod cache;
mod conf;
mod result;

use std::ffi::OsString;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::lease::MappedPort;
use crate::plugin::{self, Call, PluginError, said};
use cache::Record;
pub use conf::Configuration;
pub use result::{Address, Attachment, Dns, Interface};

/// A network by plugins.
#[derive(Debug, Clone)]
pub struct Cni {
    /// What the operator has configured.
    pub configuration: Configuration,
    /// Where plugins are looked for, in this order.
    pub programs: Vec<PathBuf>,
    /// What is attached is remembered here, across restarts.
    pub cache: PathBuf,
    /// How long one plugin may take for one command.
    pub timeout: Duration,
}

/// A container, as its keeper describes it.
#[derive(Debug, Clone, Copy)]
pub struct Container<'a> {
    /// A name that is never used twice: letters, digits, and `.`, `_`, `-` behind the first.
    pub id: &'a str,
    /// Its network namespace. Only DEL can do without.
    pub namespace: Option<BorrowedFd<'a>>,
    /// The interface's name inside.
    pub interface: &'a str,
    /// Host ports that shall lead to it, if the configuration has a plugin for that.
    pub ports: &'a [Port],
    /// `CNI_ARGS`, beside `IgnoreUnknown`: names and values without `;` and `=`.
    pub arguments: &'a [(String, String)],
}

/// A host port that shall lead to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// On the host.
    pub host: u16,
    /// In the container.
    pub container: u16,
    /// UDP instead of TCP.
    #[serde(default)]
    pub udp: bool,
}

/// Plugins could not do what they were asked.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// A configuration that cannot be used.
    #[error("the CNI configuration {path} cannot be used: {reason}")]
    Configuration {
        /// The file, or the directory without one.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A description of a container that cannot be passed on.
    #[error("CNI plugins cannot be told {what} {value:?}")]
    Container {
        /// A part of the description.
        what: &'static str,
        /// What it is.
        value: String,
    },
    /// No program of this name.
    #[error("the CNI plugin {kind} is in none of {}: install it, or name its directory", list(.programs))]
    Missing {
        /// The plugin's type.
        kind: String,
        /// Where it was looked for.
        programs: Vec<PathBuf>,
    },
    /// A plugin said no.
    #[error("the CNI plugin {kind} failed at {command}: {message}")]
    Refused {
        /// The plugin's type.
        kind: String,
        /// What it was asked.
        command: &'static str,
        /// The specification's or the plugin's number for it; 0 when it gave none. 11 means: later.
        code: u64,
        /// Its explanation.
        message: String,
    },
    /// A plugin did not run to its end.
    #[error("the CNI plugin {kind} failed at {command}")]
    Run {
        /// The plugin's type.
        kind: String,
        /// What it was asked.
        command: &'static str,
        /// Why.
        #[source]
        source: PluginError,
    },
    /// A plugin's result is not what the specification says.
    #[error("the CNI plugin {kind} has a wrong result: {reason}")]
    Answer {
        /// The plugin's type.
        kind: String,
        /// What is wrong.
        reason: String,
    },
    /// What is attached cannot be remembered.
    #[error("cannot keep the record of an attachment {path}")]
    Cache {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// An ADD failed, and what it had done could not be undone: a DEL is due.
    #[error("{add}; and it could not be undone, so the network must be deleted once more: {del}")]
    Half {
        /// What failed first.
        add: Box<CniError>,
        /// What failed then.
        del: Box<CniError>,
    },
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    paths.join(", ")
}

impl Cni {
    /// Attaches a container. What fails is undone.
    ///
    /// # Errors
    /// Before anything is run: a description that cannot be passed on, a plugin that is missing.
    /// Then what the first plugin that fails says.
    pub fn add(&self, container: &Container<'_>) -> Result<Attachment, CniError> {
        self.check_container(container)?;
        for plugin in &self.configuration.plugins {
            self.program(kind(plugin))?;
        }
        let path = self.cached(container);
        let mut record = Record {
            configuration: self.configuration.text.clone(),
            ports: container.ports.to_vec(),
            arguments: container.arguments.to_vec(),
            result: None,
        };
        record.write(&path)?;
        let added = self
            .add_all(container, &record)
            .and_then(|(result, attachment)| {
                record.result = Some(result);
                record.write(&path).map(|()| attachment)
            });
        added.map_err(|add| match self.del(container) {
            Ok(()) => add,
            Err(del) => CniError::Half {
                add: Box::new(add),
                del: Box::new(del),
            },
        })
    }

    fn add_all(
        &self,
        container: &Container<'_>,
        record: &Record,
    ) -> Result<(Value, Attachment), CniError> {
        let mut last = None;
        let mut name = "";
        for plugin in &self.configuration.plugins {
            name = kind(plugin);
            let input = input(&self.configuration, plugin, record, last.as_ref());
            let stdout = self.ask("ADD", name, container, record, &input)?;
            let result =
                serde_json::from_slice::<Value>(&stdout).map_err(|error| error.to_string());
            let result = result.and_then(|result| match result {
                Value::Object(_) => Ok(result),
                _ => Err("it is no JSON object".to_owned()),
            });
            last = Some(result.map_err(|reason| wrong(name, reason))?);
        }
        let last = last.unwrap_or_default();
        let tcp = record
            .ports
            .iter()
            .filter(|port| !port.udp)
            .map(|port| MappedPort {
                host: port.host,
                container: port.container,
            });
        let ports: Vec<_> = match self.configuration.plugins.iter().any(maps_ports) {
            true => tcp.collect(),
            false => Vec::new(),
        };
        let attachment = result::read(&last, &ports).map_err(|reason| wrong(name, reason))?;
        Ok((last, attachment))
    }

    /// Looks whether all of it is still there. Plugins of before 0.4.0 cannot tell.
    ///
    /// # Errors
    /// What the first plugin says that misses something.
    pub fn check(&self, container: &Container<'_>) -> Result<(), CniError> {
        self.check_container(container)?;
        let (configuration, record) = self.recorded(container)?;
        if configuration.no_check || !configuration.has_check() {
            return Ok(());
        }
        for plugin in &configuration.plugins {
            let input = input(&configuration, plugin, &record, record.result.as_ref());
            self.ask("CHECK", kind(plugin), container, &record, &input)?;
        }
        Ok(())
    }

    /// Detaches a container, also one that was never attached, or not completely. All plugins are
    /// run, whatever one of them says.
    ///
    /// # Errors
    /// What the first plugin says that fails; may be tried again.
    pub fn del(&self, container: &Container<'_>) -> Result<(), CniError> {
        check_names(container)?;
        let (configuration, record) = self.recorded(container)?;
        let told = match configuration.has_check() {
            true => record.result.as_ref(),
            false => None,
        };
        let mut first = None;
        for plugin in configuration.plugins.iter().rev() {
            let input = input(&configuration, plugin, &record, told);
            if let Err(error) = self.ask("DEL", kind(plugin), container, &record, &input) {
                first.get_or_insert(error);
            }
        }
        match first {
            Some(error) => Err(error),
            None => cache::forget(&self.cached(container)),
        }
    }

    /// What was said at ADD; now's configuration for what was not recorded.
    fn recorded(&self, container: &Container<'_>) -> Result<(Configuration, Record), CniError> {
        let path = self.cached(container);
        match Record::read(&path)? {
            Some(record) => {
                let configuration = Configuration::new(record.configuration.clone());
                let configuration =
                    configuration.map_err(|reason| CniError::Configuration { path, reason })?;
                Ok((configuration, record))
            }
            None => Ok((
                self.configuration.clone(),
                Record {
                    configuration: self.configuration.text.clone(),
                    ports: container.ports.to_vec(),
                    arguments: container.arguments.to_vec(),
                    result: None,
                },
            )),
        }
    }

    fn cached(&self, container: &Container<'_>) -> PathBuf {
        let network = &self.configuration.name;
        cache::path(&self.cache, network, container.id, container.interface)
    }

    fn check_container(&self, container: &Container<'_>) -> Result<(), CniError> {
        check_names(container)?;
        if container.namespace.is_none() {
            return Err(CniError::Container {
                what: "a network namespace: there is none for",
                value: container.id.to_owned(),
            });
        }
        Ok(())
    }

    /// The program of a type, which is a plain name.
    fn program(&self, kind: &str) -> Result<PathBuf, CniError> {
        let mut paths = self.programs.iter().map(|directory| directory.join(kind));
        paths
            .find(|path| path.is_file())
            .ok_or_else(|| CniError::Missing {
                kind: kind.to_owned(),
                programs: self.programs.clone(),
            })
    }

    fn ask(
        &self,
        command: &'static str,
        kind: &str,
        container: &Container<'_>,
        record: &Record,
        input: &[u8],
    ) -> Result<Vec<u8>, CniError> {
        let program = self.program(kind)?;
        // The plugin opens it through us, so that no other namespace can be there instead.
        let namespace = container
            .namespace
            .map(|fd| format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()));
        let mut arguments = "IgnoreUnknown=1".to_owned();
        for (name, value) in &record.arguments {
            arguments.push_str(&format!(";{name}={value}"));
        }
        let programs = std::env::join_paths(&self.programs).unwrap_or_default();
        let variables: [(&str, OsString); 6] = [
            ("CNI_COMMAND", command.into()),
            ("CNI_CONTAINERID", container.id.into()),
            ("CNI_NETNS", namespace.unwrap_or_default().into()),
            ("CNI_IFNAME", container.interface.into()),
            ("CNI_ARGS", arguments.into()),
            ("CNI_PATH", programs),
        ];
        let call = Call {
            program: &program,
            arguments: &[],
            variables: &variables,
            input,
            timeout: self.timeout,
        };
        let answer = plugin::run(&call).map_err(|source| CniError::Run {
            kind: kind.to_owned(),
            command,
            source,
        })?;
        if answer.status.success() {
            return Ok(answer.stdout);
        }
        let refusal: result::Refusal = serde_json::from_slice(&answer.stdout).unwrap_or_default();
        let message = match refusal.msg.as_str() {
            "" => format!("{}{}", answer.status_text(), said(&answer.stderr)),
            text => format!("{text}{}", said(&refusal.details)),
        };
        Err(CniError::Refused {
            kind: kind.to_owned(),
            command,
            code: refusal.code,
            message,
        })
    }
}

fn wrong(kind: &str, reason: String) -> CniError {
    CniError::Answer {
        kind: kind.to_owned(),
        reason,
    }
}

fn check_names(container: &Container<'_>) -> Result<(), CniError> {
    let refuse = |what, value: &str| {
        Err(CniError::Container {
            what,
            value: value.to_owned(),
        })
    };
    if !conf::is_name(container.id) {
        return refuse("the id", container.id);
    }
    if !conf::is_interface(container.interface) {
        return refuse("the interface", container.interface);
    }
    let odd = |text: &str| text.is_empty() || text.contains([';', '=', '\0']);
    for (name, value) in container.arguments {
        if odd(name) || value.contains([';', '=', '\0']) {
            return refuse("the argument", &format!("{name}={value}"));
        }
    }
    Ok(())
}

fn kind(plugin: &Map<String, Value>) -> &str {
    plugin
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn maps_ports(plugin: &Map<String, Value>) -> bool {
    let capabilities = plugin.get("capabilities");
    capabilities.and_then(|all| all.get("portMappings")) == Some(&Value::Bool(true))
}

/// A plugin's part of the configuration, as it is told.
fn input(
    configuration: &Configuration,
    plugin: &Map<String, Value>,
    record: &Record,
    previous: Option<&Value>,
) -> Vec<u8> {
    let mut told = plugin.clone();
    told.insert("name".to_owned(), configuration.name.clone().into());
    told.insert(
        "cniVersion".to_owned(),
        configuration.version.clone().into(),
    );
    told.remove("capabilities");
    if maps_ports(plugin) && !record.ports.is_empty() {
        let ports = record.ports.iter().map(|port| {
            let protocol = if port.udp { "udp" } else { "tcp" };
            json!({ "hostPort": port.host, "containerPort": port.container, "protocol": protocol })
        });
        let ports: Vec<_> = ports.collect();
        told.insert("runtimeConfig".to_owned(), json!({ "portMappings": ports }));
    }
    if let Some(previous) = previous {
        told.insert("prevResult".to_owned(), previous.clone());
    }
    Value::Object(told).to_string().into_bytes()
}

#[cfg(test)]
mod tests;
