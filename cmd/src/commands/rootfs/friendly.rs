//! Errors in the texts that GrootFS's users know, and their tests and scripts compare.

use garden_rootfs::{Error, RegistryError, Rule};

use super::Failure;

/// What went wrong with an image or with making a root filesystem of it.
pub(super) fn of(error: &Error, image: &str, limit: Option<u64>) -> Failure {
    Failure::new(known(error, image, limit).unwrap_or_else(|| plain(error)))
}

/// The id is taken.
pub(super) fn id_in_use(id: &str) -> Failure {
    Failure::new(format!("image for id `{id}` already exists"))
}

fn known(error: &Error, image: &str, limit: Option<u64>) -> Option<String> {
    Some(match error {
        Error::ImageNotFound { .. } => "Image source doesn't exist".to_owned(),
        Error::Registry(RegistryError::Missing { .. }) => {
            format!("{image} does not exist or you do not have permissions to see it.")
        }
        Error::Registry(RegistryError::Credentials { .. }) => {
            "authorization failed: username and password are invalid".to_owned()
        }
        Error::Registry(RegistryError::Insecure { .. }) => {
            "This registry is insecure. To pull images from this registry, please use the \
             --insecure-registry option."
                .to_owned()
        }
        Error::IdInUse(id) => format!("image for id `{id}` already exists"),
        Error::ImageMalformed { rule, .. } => match rule {
            Rule::Digest { expected, actual } => {
                format!("layerID digest mismatch: expected: {expected}, actual: {actual}")
            }
            Rule::Size { expected, actual } => format!(
                "layer size is different from the value in the manifest; expected: {expected}, \
                 actual {actual}"
            ),
            Rule::Bytes(_) if limit.is_some() => "uncompressed layer size exceeds quota".to_owned(),
            _ => return None,
        },
        _ => return None,
    })
}

/// An error with its causes, in one line.
pub(super) fn plain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let more = source.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = source.source();
    }
    text.replace(['\n', '\r'], " ")
}
