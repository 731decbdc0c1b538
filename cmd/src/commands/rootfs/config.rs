//! What a GrootFS command is to do: its YAML file, and the command line, which wins over it.
//!
//! The keys are those that BOSH's templates write. Keys that are not known are passed over, as
//! GrootFS does; keys of its helper programs are read and mean nothing here.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::args::Parsed;
use super::lager::Level;

/// Where GrootFS keeps its things when nobody says.
pub(super) const STORE: &str = "/var/lib/grootfs";

/// The whole configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Config {
    pub(super) store: PathBuf,
    pub(super) log_level: String,
    pub(super) log_file: PathBuf,
    pub(super) create: Create,
    pub(super) clean: Clean,
    pub(super) init: Init,
}

/// Of `create`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Create {
    pub(super) exclude_image_from_quota: bool,
    pub(super) skip_layer_validation: bool,
    pub(super) with_clean: bool,
    pub(super) clean_log_file: PathBuf,
    pub(super) without_mount: bool,
    pub(super) disk_limit_size_bytes: i64,
    pub(super) insecure_registries: Vec<String>,
    pub(super) remote_layer_client_certificates_path: PathBuf,
}

/// Of `clean`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Clean {
    pub(super) threshold_bytes: i64,
}

/// Of `init-store`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Init {
    pub(super) store_size_bytes: i64,
    pub(super) with_direct_io: bool,
}

impl Config {
    /// The file that the global flags name, with these flags.
    pub(super) fn load(flags: &Parsed) -> Result<Self, String> {
        let mut config = match flags.text("config") {
            None | Some("") => Self::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| format!("invalid config path: {path}: {error}"))?;
                Self::parse(&text).map_err(|error| format!("invalid config file: {error}"))?
            }
        };
        if let Some(store) = flags.text("store") {
            config.store = store.into();
        } else if config.store.as_os_str().is_empty() {
            config.store = STORE.into();
        }
        if let Some(level) = flags.text("log-level") {
            level.clone_into(&mut config.log_level);
        }
        if let Some(file) = flags.text("log-file").filter(|file| !file.is_empty()) {
            config.log_file = file.into();
        }
        Ok(config)
    }

    fn parse(text: &str) -> Result<Self, String> {
        // A document without content is null, which is no structure; comments are no content.
        let empty = |line: &str| {
            let line = line.trim();
            line.is_empty() || line == "---" || line.starts_with('#')
        };
        if text.lines().all(empty) {
            return Ok(Self::default());
        }
        serde_saphyr::from_str(text).map_err(|error| error.to_string())
    }

    /// Takes the flags of a command.
    pub(super) fn take(&mut self, flags: &Parsed) -> Result<(), String> {
        if flags.has("with-clean") && flags.has("without-clean") {
            return Err("with-clean and without-clean cannot be used together".to_owned());
        }
        let create = &mut self.create;
        let registries = flags.list("insecure-registry");
        if !registries.is_empty() {
            create.insecure_registries = registries;
        }
        if let Some(limit) = flags.number("disk-limit-size-bytes") {
            create.disk_limit_size_bytes = limit;
        }
        for (name, value) in [
            (
                "exclude-image-from-quota",
                &mut create.exclude_image_from_quota,
            ),
            ("skip-layer-validation", &mut create.skip_layer_validation),
            ("with-direct-io", &mut self.init.with_direct_io),
        ] {
            if flags.text(name).is_some() {
                *value = flags.has(name);
            }
        }
        for (on, off, value) in [
            ("with-clean", "without-clean", &mut create.with_clean),
            ("without-mount", "with-mount", &mut create.without_mount),
        ] {
            // As GrootFS has it: mounting loses against not mounting, cleaning cannot meet its
            // opposite.
            if flags.has(off) {
                *value = false;
            }
            if flags.has(on) {
                *value = true;
            }
        }
        if let Some(file) = flags.text("clean-log-file").filter(|file| !file.is_empty()) {
            create.clean_log_file = file.into();
        }
        if let Some(threshold) = flags.number("threshold-bytes") {
            self.clean.threshold_bytes = threshold;
        }
        if let Some(size) = flags.number("store-size-bytes") {
            self.init.store_size_bytes = size;
        }
        self.check()
    }

    fn check(&self) -> Result<(), String> {
        let negative = |what| Err(format!("invalid argument: {what} cannot be negative"));
        if self.create.disk_limit_size_bytes < 0 {
            return negative("disk limit");
        }
        if self.clean.threshold_bytes < 0 {
            return negative("clean threshold");
        }
        if self.init.store_size_bytes < 0 {
            return negative("store size");
        }
        Ok(())
    }

    /// How much is logged. Somebody who names a file wants something in it.
    pub(super) fn level(&self) -> Result<Level, String> {
        match self.log_level.as_str() {
            "" if self.log_file.as_os_str().is_empty() => Ok(Level::Fatal),
            "" => Ok(Level::Info),
            text => Level::parse(text).ok_or_else(|| {
                format!("invalid log level: {text}: use debug, info, error or fatal")
            }),
        }
    }

    /// Where the log goes; standard error when nowhere else.
    pub(super) fn log_file(&self) -> Option<&Path> {
        Some(&*self.log_file).filter(|path| !path.as_os_str().is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::super::commands;
    use super::*;
    use crate::commands::rootfs::args::parse;
    use std::ffi::OsString;

    fn flags(command: &str, line: &str) -> Parsed {
        let command = commands::find(command).unwrap();
        parse(command.flags, line.split_whitespace().map(OsString::from)).unwrap()
    }

    fn taken(yaml: &str, command: &str, line: &str) -> Result<Config, String> {
        let mut config = Config::parse(yaml)?;
        config.take(&flags(command, line))?;
        Ok(config)
    }

    const YAML: &str = "
store: /var/vcap/data/grootfs/store/unprivileged
tardis_bin: /x/tardis
log_level: error
some_new_key: [1, 2]
create:
  with_clean: true
  without_mount: false
  skip_layer_validation: true
  disk_limit_size_bytes: 7
  insecure_registries:
  - 10.0.0.1:5000
  remote_layer_client_certificates_path: /certs
clean:
  threshold_bytes: 1048576
init:
  store_size_bytes: 5000000000
";

    #[test]
    fn a_file_as_bosh_writes_it() {
        let config = taken(YAML, "create", "").unwrap();
        assert_eq!(
            config.store,
            Path::new("/var/vcap/data/grootfs/store/unprivileged")
        );
        assert!(config.create.with_clean && config.create.skip_layer_validation);
        assert_eq!(config.create.insecure_registries, ["10.0.0.1:5000"]);
        assert_eq!(config.create.disk_limit_size_bytes, 7);
        assert_eq!(config.clean.threshold_bytes, 1 << 20);
        assert_eq!(config.init.store_size_bytes, 5_000_000_000);
        assert_eq!(config.level(), Ok(Level::Error));
        for empty in ["", "---\n", "# nothing\n"] {
            assert_eq!(Config::parse(empty), Ok(Config::default()));
        }
        assert!(Config::parse("create: 7").is_err());
        assert!(Config::parse("create: [").is_err());
    }

    #[test]
    fn flags_win_over_the_file() {
        let line = "--without-clean --without-mount --disk-limit-size-bytes 9 \
                    --insecure-registry a --insecure-registry b --skip-layer-validation=false";
        let config = taken(YAML, "create", line).unwrap();
        assert!(!config.create.with_clean && config.create.without_mount);
        assert!(!config.create.skip_layer_validation);
        assert_eq!(config.create.disk_limit_size_bytes, 9);
        assert_eq!(config.create.insecure_registries, ["a", "b"]);
        let config = taken("create: {without_mount: true}", "create", "--with-mount").unwrap();
        assert!(!config.create.without_mount);
    }

    #[test]
    fn what_makes_no_sense_is_refused_in_grootfs_words() {
        let refused = |yaml, command, line| taken(yaml, command, line).unwrap_err();
        assert_eq!(
            refused("", "create", "--disk-limit-size-bytes -1"),
            "invalid argument: disk limit cannot be negative"
        );
        assert_eq!(
            refused("clean: {threshold_bytes: -1}", "clean", ""),
            "invalid argument: clean threshold cannot be negative"
        );
        assert_eq!(
            refused("", "create", "--with-clean --without-clean"),
            "with-clean and without-clean cannot be used together"
        );
    }

    #[test]
    fn a_log_file_is_for_something() {
        let mut config = Config::default();
        assert_eq!(config.level(), Ok(Level::Fatal));
        config.log_file = "/tmp/x".into();
        assert_eq!(config.level(), Ok(Level::Info));
        config.log_level = "noise".to_owned();
        assert!(config.level().is_err());
    }
}
