//! Which image of an index this machine can run.
//!
//! Used wherever an index is met. An entry counts when its system and architecture are ours and
//! its variant is one that every machine of the architecture runs, the best one first; entries
//! without a platform are taken only when no other fits.

use oci_spec::image::{Descriptor, Platform};

/// What a machine runs, in the words of GOARCH and GOARM.
#[derive(Debug, Clone, Copy)]
struct Machine {
    architecture: &'static str,
    /// Variants that it runs, the best one first; `""` for an entry that names none.
    variants: &'static [&'static str],
}

const HERE: Machine = machine(std::env::consts::ARCH);

const fn machine(arch: &'static str) -> Machine {
    let (architecture, variants): (_, &[&str]) = match arch.as_bytes() {
        b"x86_64" => ("amd64", &["", "v1"]),
        b"aarch64" => ("arm64", &["v8", ""]),
        b"arm" => ("arm", &["v7", "v6", "v5", ""]),
        b"x86" => ("386", &[""]),
        b"powerpc64" => ("ppc64le", &[""]),
        b"loongarch64" => ("loong64", &[""]),
        _ => (arch, &[""]),
    };
    Machine {
        architecture,
        variants,
    }
}

impl Machine {
    /// How well an image for this platform fits, 0 best; `None` when it does not run here.
    fn rank(&self, platform: Option<&Platform>) -> Option<usize> {
        let Some(platform) = platform else {
            return Some(self.variants.len());
        };
        let ours = platform.os().to_string() == "linux"
            && platform.architecture().to_string() == self.architecture;
        let variant = platform.variant().as_deref().unwrap_or_default();
        let rank = self.variants.iter().position(|known| *known == variant);
        rank.filter(|_| ours)
    }

    fn choose<'a>(
        &self,
        entries: impl IntoIterator<Item = &'a Descriptor>,
    ) -> Option<&'a Descriptor> {
        let ranked = entries.into_iter().filter_map(|entry| {
            let rank = self.rank(entry.platform().as_ref())?;
            Some((rank, entry))
        });
        ranked.min_by_key(|(rank, _)| *rank).map(|(_, entry)| entry)
    }
}

/// The entry that fits this machine best; the first of equals.
pub(crate) fn choose<'a>(
    entries: impl IntoIterator<Item = &'a Descriptor>,
) -> Option<&'a Descriptor> {
    HERE.choose(entries)
}

/// What this machine is, for errors: `linux/amd64`.
pub(crate) fn here() -> String {
    format!("linux/{}", HERE.architecture)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(arch: &'static str, platforms: &[&str]) -> Option<usize> {
        let entries: Vec<Descriptor> = platforms
            .iter()
            .map(|platform| {
                let mut entry = serde_json::json!({
                    "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "digest": crate::Digest::of(platform.as_bytes()),
                    "size": 1,
                });
                let mut parts = platform.split('/');
                if let (Some(os), Some(architecture)) = (parts.next(), parts.next()) {
                    entry["platform"] = serde_json::json!({"os": os, "architecture": architecture});
                    if let Some(variant) = parts.next() {
                        entry["platform"]["variant"] = variant.into();
                    }
                }
                serde_json::from_value(entry).unwrap()
            })
            .collect();
        let entry = machine(arch).choose(&entries)?;
        entries.iter().position(|other| std::ptr::eq(other, entry))
    }

    #[test]
    fn the_best_that_runs_is_taken() {
        let many = [
            "windows/amd64",
            "unknown/unknown",
            "linux/arm/v6",
            "linux/arm/v7",
            "linux/arm64/v8",
            "linux/amd64/v3",
            "linux/amd64",
            "linux/amd64",
            "any",
        ];
        assert_eq!(chosen("x86_64", &many), Some(6));
        assert_eq!(chosen("aarch64", &many), Some(4));
        assert_eq!(chosen("arm", &many), Some(3));
        assert_eq!(chosen("s390x", &many), Some(8));
        assert_eq!(chosen("s390x", &many[..8]), None);
        assert_eq!(chosen("x86_64", &["linux/amd64/v3"]), None);
        assert_eq!(chosen("aarch64", &["linux/arm64"]), Some(0));
        assert_eq!(chosen("arm", &["linux/arm/v5", "linux/arm/v8"]), Some(0));
    }
}
