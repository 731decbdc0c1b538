//! Values of flags that need more than parsing a number.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use garden::model::{BindMount, Handle, IdError, PortMapping, ProcessId, Rlimit};
use garden_rootfs::Space;

/// A size in bytes: a number with an optional unit, `64M`, `1.5g`, `4096`.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!(
            "{text:?} is not a size: give a number of bytes, or one with a unit of 1024, like \
             64M, 512k, 2G"
        )
    };
    let (digits, unit) = number_and_unit(text);
    let shift = match unit.to_ascii_lowercase().as_str() {
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

/// A duration: a number with a unit, `500ms`, `1.5s`, `2m`, `1h`; seconds without one.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("{text:?} is not a time: give a number with a unit, like 500ms, 1.5s, 2m or 1h");
    let (digits, unit) = number_and_unit(text);
    let unit = if unit.is_empty() { "s" } else { unit };
    let factor = milliseconds(unit).ok_or_else(wrong)? as f64 / 1000.0;
    let plain = digits
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    let number: f64 = digits.parse().map_err(|_| wrong())?;
    if !plain {
        return Err(wrong());
    }
    Duration::try_from_secs_f64(number * factor).map_err(|_| wrong())
}

/// A time as Go's flags have it, of one unit: `90s`, `5m`, `1h`, `500ms`; 0 is none at all.
pub(crate) fn time(text: &str) -> Result<Duration, String> {
    let (digits, unit) = number_and_unit(text);
    let number: u64 = digits.parse().unwrap_or(u64::MAX);
    let ms = match unit {
        "" if number == 0 => Some(0),
        unit => milliseconds(unit),
    };
    ms.and_then(|ms| number.checked_mul(ms))
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{text:?} is not a time: give a number with ms, s, m or h, like 5m"))
}

/// A text without the letters at its end, and those.
fn number_and_unit(text: &str) -> (&str, &str) {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    text.split_at(digits.len())
}

/// A unit of time.
fn milliseconds(unit: &str) -> Option<u64> {
    match unit {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    }
}

/// `K=V`.
pub(crate) fn assignment(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((key, _)) if !key.is_empty() => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is not an assignment: write NAME=VALUE")),
    }
}

/// `K=V`, or only `K` for what this command's own environment has.
pub(crate) fn environment(text: &str) -> Result<String, String> {
    if text.contains('=') || text.is_empty() {
        return assignment(text);
    }
    match std::env::var(text) {
        Ok(value) => Ok(format!("{text}={value}")),
        Err(_) => Err(format!(
            "this command's own environment has no {text} to pass on: write {text}=VALUE"
        )),
    }
}

/// A container's name.
pub(crate) fn handle(text: &str) -> Result<Handle, IdError> {
    text.parse()
}

/// A process's name.
pub(crate) fn process_id(text: &str) -> Result<ProcessId, IdError> {
    text.parse()
}

/// `SRC:DST`, with `:ro` or `:rw`. The source is made absolute: the server has another directory.
pub(crate) fn volume(text: &str) -> Result<BindMount, String> {
    let wrong = || {
        format!(
            "{text:?} is not a bind mount: write SOURCE:DESTINATION, and :ro behind it to forbid \
             writing; the destination begins with /"
        )
    };
    let (paths, writable) = match text.rsplit_once(':') {
        Some((paths, "ro")) => (paths, false),
        Some((paths, "rw")) => (paths, true),
        _ => (text, true),
    };
    let (source, destination) = paths.split_once(':').ok_or_else(wrong)?;
    if source.is_empty() || !destination.starts_with('/') {
        return Err(wrong());
    }
    Ok(BindMount {
        source: std::path::absolute(source).map_err(|_| wrong())?,
        destination: destination.into(),
        writable,
    })
}

/// `NAME=N`, where N may be `unlimited`.
pub(crate) fn rlimit(text: &str) -> Result<Rlimit, String> {
    let wrong = || {
        format!(
            "{text:?} is not a resource limit: write NAME=NUMBER, like nofile=1024, or \
             NAME=unlimited"
        )
    };
    let (name, value) = text.split_once('=').ok_or_else(wrong)?;
    let value = match value {
        "unlimited" => u64::MAX,
        number => number.parse().map_err(|_| wrong())?,
    };
    let name = name.to_ascii_lowercase();
    if !Rlimit::NAMES.contains(&name.as_str()) {
        let known = Rlimit::NAMES.join(" ");
        return Err(format!(
            "there is no resource limit {name:?}: use one of {known}"
        ));
    }
    Ok(Rlimit { name, value })
}

/// A port of the host and one of a container: `8080:80`, `:80` for any of the host, `80` for the
/// same of both.
pub(crate) fn port(text: &str) -> Result<PortMapping, String> {
    let wrong = || format!("{text:?}: give HOST:CONTAINER like 8080:80, or :80 for any host port");
    let number = |part: &str| match part {
        "" => Ok(0),
        part => part.parse::<u16>().map(u32::from).map_err(|_| wrong()),
    };
    let (host, container) = text.split_once(':').unwrap_or((text, text));
    let mapping = PortMapping {
        host_port: number(host)?,
        container_port: number(container)?,
    };
    if container.is_empty() || mapping.container_port == 0 {
        return Err(wrong());
    }
    Ok(mapping)
}

/// One port or a range of them, `80-90`.
pub(crate) fn ports(text: &str) -> Result<(u16, u16), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) if first <= last => Ok((first, last)),
        _ => Err(format!("{text:?}: give a port, or FIRST-LAST")),
    }
}

/// One address, a range of them, `10.0.0.1-10.0.0.9`, or a network, `10.0.0.0/8`.
pub(crate) fn addresses(text: &str) -> Result<(IpAddr, IpAddr), String> {
    let wrong = || format!("{text:?}: give an address, FIRST-LAST, or a network like 10.0.0.0/8");
    let address = |part: &str| part.parse::<IpAddr>().map_err(|_| wrong());
    if let Some((network, bits)) = text.split_once('/') {
        let bits: u32 = bits.parse().map_err(|_| wrong())?;
        return match address(network)? {
            IpAddr::V4(one) if bits <= 32 => {
                let host = u32::MAX.checked_shr(bits).unwrap_or(0);
                let one = u32::from(one);
                let range = (one & !host, one | host);
                Ok((
                    Ipv4Addr::from(range.0).into(),
                    Ipv4Addr::from(range.1).into(),
                ))
            }
            IpAddr::V6(one) if bits <= 128 => {
                let host = u128::MAX.checked_shr(bits).unwrap_or(0);
                let one = u128::from(one);
                let range = (one & !host, one | host);
                Ok((
                    Ipv6Addr::from(range.0).into(),
                    Ipv6Addr::from(range.1).into(),
                ))
            }
            _ => Err(wrong()),
        };
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (address(first)?, address(last)?);
    if first.is_ipv4() != last.is_ipv4() || first > last {
        return Err(wrong());
    }
    Ok((first, last))
}

/// A kind of ICMP message: its type, or `TYPE/CODE`.
pub(crate) fn icmp(text: &str) -> Result<(u8, Option<u8>), String> {
    let wrong = |_| format!("{text:?}: give the number of a type, or TYPE/CODE, like 8 or 3/1");
    Ok(match text.split_once('/') {
        None => (text.parse().map_err(wrong)?, None),
        Some((kind, code)) => (
            kind.parse().map_err(wrong)?,
            Some(code.parse().map_err(wrong)?),
        ),
    })
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
    fn cpus_are_counted_in_thousandths() {
        assert_eq!(cpus("1.5"), Ok(1500));
        assert_eq!(cpus("0.25"), Ok(250));
        assert_eq!(cpus_or_none("0"), Ok(0));
        for wrong in ["0", "-1", "x", "inf", "NaN", "0.0001"] {
            assert!(cpus(wrong).is_err(), "{wrong}");
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

    #[test]
    fn bind_mounts_are_read_as_docker_reads_them() {
        let bind = volume("/a:/b:ro").unwrap();
        assert_eq!(bind.source, std::path::Path::new("/a"));
        assert_eq!(bind.destination, std::path::Path::new("/b"));
        assert!(!bind.writable);
        assert!(volume("/a:/b").unwrap().writable);
        assert!(volume("a:/b").unwrap().source.is_absolute());
        for wrong in ["/a", "/a:b", ":/b", "ro", "/a:ro"] {
            assert!(volume(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_have_a_unit() {
        assert_eq!(time("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(time("0"), Ok(Duration::ZERO));
        for wrong in ["", "5", "m", "-1s", "1h30m", "99999999999999999999h"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn resource_limits() {
        assert_eq!(rlimit("NOFILE=7").unwrap().name, "nofile");
        assert_eq!(rlimit("core=unlimited").unwrap().value, u64::MAX);
        for wrong in ["nofile", "nofile=", "=7", "nofile=-1", "teeth=1"] {
            assert!(rlimit(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ports_and_networks() {
        let mapping = |host_port, container_port| PortMapping {
            host_port,
            container_port,
        };
        assert_eq!(port("8080:80"), Ok(mapping(8080, 80)));
        assert_eq!(port(":80"), Ok(mapping(0, 80)));
        assert_eq!(port("80"), Ok(mapping(80, 80)));
        for wrong in ["", ":", "80:", "0", "1:70000", "a:1"] {
            assert!(port(wrong).is_err(), "{wrong}");
        }
        assert_eq!(ports("80-90"), Ok((80, 90)));
        assert!(ports("90-80").is_err() && ports("x").is_err());
        let range = |first: &str, last: &str| Ok((first.parse().unwrap(), last.parse().unwrap()));
        assert_eq!(addresses("10.1.2.3/8"), range("10.0.0.0", "10.255.255.255"));
        assert_eq!(addresses("0.0.0.0/0"), range("0.0.0.0", "255.255.255.255"));
        assert_eq!(addresses("fd00::/120"), range("fd00::", "fd00::ff"));
        assert_eq!(
            addresses("10.0.0.1-10.0.0.9"),
            range("10.0.0.1", "10.0.0.9")
        );
        for wrong in ["10.0.0.0/33", "10.0.0.9-10.0.0.1", "10.0.0.1-fd00::1", "x"] {
            assert!(addresses(wrong).is_err(), "{wrong}");
        }
        assert_eq!(icmp("3/1"), Ok((3, Some(1))));
        assert!(icmp("256").is_err());
    }
}
