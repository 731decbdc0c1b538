//! Values of flags that need more than parsing a number.

use garden::model::{BindMount, Handle, IdError};
use garden_rootfs::Space;

/// A size in bytes: a number with an optional unit, `64M`, `1.5g`, `4096`.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!(
            "{text:?} is not a size: give a number of bytes, or one with a unit of 1024, like \
             64M, 512k, 2G"
        )
    };
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text
        .get(digits.len()..)
        .unwrap_or_default()
        .to_ascii_lowercase();
    let shift = match unit.as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    if fraction.len() > 9 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let scale = 10_u64.pow(u32::try_from(fraction.len()).unwrap_or(0));
    let part: u64 = fraction.parse().unwrap_or(0);
    let bytes = (u128::from(whole) << shift) + ((u128::from(part) << shift) / u128::from(scale));
    let bytes = u64::try_from(bytes).map_err(|_| wrong())?;
    if bytes == 0 { Err(wrong()) } else { Ok(bytes) }
}

/// Processor time in thousandths of a CPU: a number of CPUs, `1.5`.
pub(crate) fn cpus(text: &str) -> Result<u64, String> {
    match cpus_or_none(text) {
        Ok(0) => Err("0 CPUs run nothing: leave the limit out".to_owned()),
        other => other,
    }
}

/// The same, or `0` for none.
pub(crate) fn cpus_or_none(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a number of CPUs: write 2, 1.5 or 0.25");
    let number: f64 = text.parse().map_err(|_| wrong())?;
    if !(0.0..=1e6).contains(&number) {
        return Err(wrong());
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "0 to 10^9"
    )]
    let millis = (number * 1000.0).round() as u64;
    if millis == 0 && number > 0.0 {
        return Err(wrong());
    }
    Ok(millis)
}

/// A part of a disk: a size, or a number of hundredths of it, `10%`.
pub(crate) fn space(text: &str) -> Result<Space, String> {
    match text.strip_suffix('%') {
        None => size(text).map(Space::Bytes),
        Some(number) => match number.parse() {
            Ok(percent @ 0..=100) => Ok(Space::Percent(percent)),
            _ => Err(format!(
                "{text:?}: give a size, like 20G, or hundredths, like 10%"
            )),
        },
    }
}

/// `K=V`.
pub(crate) fn assignment(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((key, _)) if !key.is_empty() => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is not an assignment: write NAME=VALUE")),
    }
}

/// A bind mount: `/on/the/host:/inside`, with `:rw` behind it if it may be written to.
pub(crate) fn bind(text: &str) -> Result<BindMount, String> {
    let wrong = || format!("{text:?}: write /ON/THE/HOST:/INSIDE, or /ON/THE/HOST:/INSIDE:rw");
    let (places, writable) = match text.strip_suffix(":rw") {
        Some(places) => (places, true),
        None => (text.strip_suffix(":ro").unwrap_or(text), false),
    };
    match places.split_once(':') {
        Some((source, destination))
            if source.starts_with('/')
                && destination.starts_with('/')
                && !destination.contains(':') =>
        {
            Ok(BindMount {
                source: source.into(),
                destination: destination.into(),
                writable,
            })
        }
        _ => Err(wrong()),
    }
}

/// A container's name.
pub(crate) fn handle(text: &str) -> Result<Handle, IdError> {
    text.parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_disk() {
        assert_eq!(space("10%"), Ok(Space::Percent(10)));
        assert_eq!(space("20G"), Ok(Space::Bytes(20 << 30)));
        for wrong in ["101%", "-1%", "%", "x"] {
            assert!(space(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn cpus_are_counted_in_thousandths() {
        assert_eq!(cpus("1.5"), Ok(1500));
        assert_eq!(cpus("0.25"), Ok(250));
        assert_eq!(cpus_or_none("0"), Ok(0));
        for wrong in ["0", "-1", "x", "inf", "NaN", "0.0001"] {
            assert!(cpus(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn bind_mounts() {
        let mount = bind("/a:/b:rw").unwrap();
        assert!(mount.writable && mount.destination == std::path::Path::new("/b"));
        assert!(!bind("/a:/b").unwrap().writable && !bind("/a:/b:ro").unwrap().writable);
        for wrong in ["/a", "a:/b", "/a:b", "/a:/b:/c", ":rw"] {
            assert!(bind(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("64M"), Ok(64 << 20));
        assert_eq!(size("1.5g"), Ok(3 << 29));
        assert_eq!(size("2kb"), Ok(2048));
        for wrong in ["12q", "", "M", "-1", "1..5", "0", "99999999999T", "1e3"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
