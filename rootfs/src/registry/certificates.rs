//! Certificates of this host: authorities to trust for a server, and who we are to it.
//!
//! Read from directories of the form that docker and containers/image have: `*.crt` are
//! authorities, `NAME.cert` with `NAME.key` is the identity that is shown.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use reqwest::{Certificate, Identity};

use super::error::{Cause, RegistryError};

/// The most bytes of a file with certificates.
const LARGEST: u64 = 1 << 20;

/// What a directory says.
#[derive(Default)]
pub(super) struct Certificates {
    pub(super) authorities: Vec<Certificate>,
    pub(super) identity: Option<Identity>,
}

impl Certificates {
    pub(super) fn load(directory: &Path) -> Result<Self, RegistryError> {
        let at = |path: &Path, source: Cause| RegistryError::Certificates {
            place: path.display().to_string(),
            source,
        };
        let mut found = Self::default();
        for path in files(directory).map_err(|error| at(directory, error.into()))? {
            let wrong = |source: Cause| at(&path, source);
            let extension = path.extension().unwrap_or_default().to_str();
            match extension.unwrap_or_default() {
                "crt" => {
                    let pem = read(&path).map_err(|error| wrong(error.into()))?;
                    let bundle = Certificate::from_pem_bundle(&pem);
                    let bundle = bundle.map_err(|error| wrong(error.into()))?;
                    found.authorities.extend(bundle);
                }
                "cert" if found.identity.is_none() => {
                    let mut pem = read(&path).map_err(|error| wrong(error.into()))?;
                    let key = path.with_extension("key");
                    pem.push(b'\n');
                    pem.extend(read(&key).map_err(|error| at(&key, error.into()))?);
                    let identity = Identity::from_pem(&pem);
                    found.identity = Some(identity.map_err(|error| wrong(error.into()))?);
                }
                _ => {}
            }
        }
        Ok(found)
    }
}

/// The files of a directory, by name: which identity is shown must not be chance.
fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(directory)?;
    let mut paths = (entries.map(|entry| Ok(entry?.path()))).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = (File::open(path)?.take(LARGEST + 1)).read_to_end(&mut bytes)?;
    if read as u64 > LARGEST {
        return Err(io::Error::other("the file is too large for certificates"));
    }
    Ok(bytes)
}
