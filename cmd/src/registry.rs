//! Flags about registries, of every command that may speak to one itself.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use garden_rootfs::RegistryPolicy;

/// How registries are spoken to.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct RegistryArgs {
    /// Registry without TLS, or whose certificate is not verified; repeatable
    #[arg(
        long = "insecure-registry",
        visible_alias = "insecure-docker-registry",
        value_name = "HOST[:PORT]"
    )]
    insecure: Vec<String>,
    /// Where to look first for images of a registry; repeatable, in this order
    #[arg(long = "registry-mirror", value_name = "REGISTRY=HOST[:PORT][/PREFIX]")]
    mirrors: Vec<String>,
    /// Directory with a directory HOST[:PORT] for each registry that needs certificates: *.crt,
    /// and NAME.cert with NAME.key [default: /etc/containers/certs.d, /etc/docker/certs.d]
    #[arg(long = "registry-certificates", value_name = "DIR")]
    certificates: Vec<PathBuf>,
    /// Directory with such files for layers that are named by URL
    #[arg(long, value_name = "DIR")]
    layer_certificates: Option<PathBuf>,
}

impl RegistryArgs {
    /// As the store takes it.
    pub(crate) fn policy(&self) -> Result<RegistryPolicy> {
        let mut policy = RegistryPolicy::default();
        policy.insecure.clone_from(&self.insecure);
        for mirror in &self.mirrors {
            match mirror.split_once('=') {
                Some((registry, place)) if !registry.is_empty() && !place.is_empty() => {
                    let places = policy.mirrors.entry(registry.to_owned()).or_default();
                    places.push(place.to_owned());
                }
                _ => bail!(
                    "--registry-mirror {mirror}: write REGISTRY=HOST, like docker.io=mirror.example.org"
                ),
            }
        }
        if !self.certificates.is_empty() {
            policy.host_certificates.clone_from(&self.certificates);
        }
        policy
            .layer_certificates
            .clone_from(&self.layer_certificates);
        Ok(policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_named_with_their_registry() {
        let args = |mirrors: &[&str]| RegistryArgs {
            mirrors: mirrors.iter().map(|mirror| (*mirror).to_owned()).collect(),
            ..RegistryArgs::default()
        };
        let policy = args(&["docker.io=a", "docker.io=b/c"]).policy().unwrap();
        assert_eq!(policy.mirrors["docker.io"], ["a", "b/c"]);
        for wrong in ["a", "=a", "a="] {
            assert!(args(&[wrong]).policy().is_err(), "{wrong}");
        }
    }
}
