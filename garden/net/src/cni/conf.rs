//! CNI network configurations: what an operator writes, checked before anything is run.
//!
//! A list of plugins (`.conflist`), or one plugin (`.conf`, `.json`), which is a list of one. Members
//! that mean nothing here are the plugins' and are handed on as they are.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::CniError;

/// Versions of the specification whose results are understood, and the newest is what we would write.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A checked configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Configuration {
    /// The network's name.
    pub(super) name: String,
    pub(super) version: String,
    /// The operator wants no CHECK.
    pub(super) no_check: bool,
    /// Never empty; each has a `type` that is a plain name.
    pub(super) plugins: Vec<Map<String, Value>>,
    /// As it was read.
    pub(super) text: Value,
}

impl Configuration {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, or says what cannot be.
    pub fn load(path: &Path) -> Result<Self, CniError> {
        let wrong = |reason: String| CniError::Configuration {
            path: path.to_owned(),
            reason,
        };
        let bytes = fs::read(path).map_err(|error| wrong(error.to_string()))?;
        let text = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        Self::new(text).map_err(wrong)
    }

    /// The one of a directory that counts: the first by name, as other runtimes choose it.
    ///
    /// # Errors
    /// When there is none, or as [`Configuration::load`].
    pub fn first_in(directory: &Path) -> Result<Self, CniError> {
        let wrong = |reason: String| CniError::Configuration {
            path: directory.to_owned(),
            reason,
        };
        let mut found: Vec<PathBuf> = Vec::new();
        for entry in fs::read_dir(directory).map_err(|error| wrong(error.to_string()))? {
            let path = entry.map_err(|error| wrong(error.to_string()))?.path();
            let ending = path.extension().and_then(|ending| ending.to_str());
            if matches!(ending, Some("conf" | "conflist" | "json")) {
                found.push(path);
            }
        }
        match found.iter().min() {
            Some(path) => Self::load(path),
            None => Err(wrong("no network is configured there".to_owned())),
        }
    }

    /// Checks what was read.
    pub(super) fn new(text: Value) -> Result<Self, String> {
        let members = text.as_object().ok_or("it is no JSON object")?;
        let string = |name: &str| match members.get(name) {
            None => Ok(""),
            Some(Value::String(text)) => Ok(text.as_str()),
            Some(_) => Err(format!("{name} is no text")),
        };
        let name = string("name")?.to_owned();
        if !is_name(&name) {
            return Err(format!(
                "name {name:?} is none: letters, digits, and . _ - behind the first"
            ));
        }
        let version = string("cniVersion")?.to_owned();
        if !VERSIONS.contains(&version.as_str()) {
            return Err(format!(
                "cniVersion {version:?} is none of {}",
                VERSIONS.join(", ")
            ));
        }
        let no_check = match members.get("disableCheck") {
            Some(Value::Bool(set)) => *set,
            Some(Value::String(text)) => text == "true",
            _ => false,
        };
        let plugins = match members.get("plugins") {
            None => vec![members.clone()],
            Some(Value::Array(list)) => {
                let plugin = |plugin: &Value| plugin.as_object().cloned();
                let plugins: Option<Vec<_>> = list.iter().map(plugin).collect();
                plugins.ok_or("a plugin is no JSON object")?
            }
            Some(_) => return Err("plugins is no list".to_owned()),
        };
        if plugins.is_empty() {
            return Err("it has no plugins".to_owned());
        }
        for plugin in &plugins {
            match plugin.get("type").and_then(Value::as_str) {
                // It becomes the name of a program in a directory.
                Some(kind) if is_name(kind) => {}
                kind => return Err(format!("the type of a plugin is no name: {kind:?}")),
            }
        }
        Ok(Self {
            name,
            version,
            no_check,
            plugins,
            text,
        })
    }

    /// The network's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Since 0.4.0 there is CHECK, and DEL is told the result of ADD.
    pub(super) fn has_check(&self) -> bool {
        !self.version.starts_with("0.3")
    }
}

/// What the specification allows as the name of a network, and as the id of a container.
pub(super) fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        && text.len() <= 200
}

/// What the specification allows as the name of an interface.
pub(super) fn is_interface(text: &str) -> bool {
    let odd = |letter: char| matches!(letter, '/' | ':') || letter.is_whitespace();
    !text.is_empty() && text.len() <= 15 && !matches!(text, "." | "..") && !text.contains(odd)
}
