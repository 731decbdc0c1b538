//! Values of flags that need more than parsing a number.

use std::time::Duration;

use garden::model::{Handle, IdError};
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

/// A duration: a number with a unit, `500ms`, `1.5s`, `2m`, `1h`; seconds without one.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("{text:?} is not a time: give a number with a unit, like 500ms, 1.5s, 2m or 1h");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.get(digits.len()..).unwrap_or_default();
    let factor = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let plain = digits
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    let number: f64 = digits.parse().map_err(|_| wrong())?;
    if !plain {
        return Err(wrong());
    }
    Duration::try_from_secs_f64(number * factor).map_err(|_| wrong())
}

/// `K=V`.
pub(crate) fn assignment(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((key, _)) if !key.is_empty() => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is not an assignment: write NAME=VALUE")),
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
    fn times_have_units() {
        let ms = |text: &str| duration(text).map(|time| time.as_millis());
        assert_eq!(ms("500ms"), Ok(500));
        assert_eq!(ms("1.5s"), Ok(1500));
        assert_eq!(ms("2"), Ok(2000));
        assert_eq!(ms("1h"), Ok(3_600_000));
        for wrong in ["", "s", "-1s", "1d", "1e3", "inf", "nan"] {
            assert!(ms(wrong).is_err(), "{wrong}");
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
