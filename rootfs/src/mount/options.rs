//! The options of every overlay, in both of their forms.
//!
//! Used by both ways of mounting. All of them are what the kernel may be configured to do
//! otherwise: `index` and `nfs_export` make a leaked mount an error, `metacopy` and redirections
//! would let a layer point at other files.

use std::ffi::CString;
use std::fmt::Write as _;

use crate::capabilities::Volatile;

/// Options of every mount.
pub(super) const OPTIONS: [(&str, &str); 5] = [
    ("index", "off"),
    ("metacopy", "off"),
    ("redirect_dir", "nofollow"),
    ("nfs_export", "off"),
    ("xino", "auto"),
];

/// What mount(2) takes of its last argument: a page, with the NUL. It cuts off what is longer,
/// and then looks up half a name.
const PAGE: usize = 4096;

/// The option string of mount(2). `lower` are paths without `:`, `,` and `\`, the topmost first;
/// `above` holds the directories `upper` and `work`. `None` when the string would be too long.
pub(super) fn text<'a>(
    lower: impl Iterator<Item = &'a str>,
    above: Option<&str>,
    volatile: Option<Volatile>,
) -> Option<CString> {
    let mut text = String::with_capacity(PAGE);
    for (number, path) in lower.enumerate() {
        text.push_str(if number == 0 { "lowerdir=" } else { ":" });
        text.push_str(path);
    }
    // Writing to a String cannot fail.
    if let Some(above) = above {
        let _ = write!(text, ",upperdir={above}/upper,workdir={above}/work");
        match volatile {
            Some(Volatile::Flag) => text.push_str(",volatile"),
            Some(Volatile::Fsync) => text.push_str(",fsync=volatile"),
            None => {}
        }
    }
    for (key, value) in OPTIONS {
        let _ = write!(text, ",{key}={value}");
    }
    (text.len() < PAGE).then(|| CString::new(text).ok())?
}

/// A short name for a number: one character for the first 62, two for the next 3844.
pub(super) fn short_name(number: usize) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let digit = |value: usize| char::from(DIGITS[value % 62]);
    match number.checked_sub(62) {
        None => digit(number).to_string(),
        Some(rest) => format!("{}{}", short_name(rest / 62), digit(rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn five_hundred_layers_fit_into_a_page() {
        let names: Vec<_> = (0..500).map(short_name).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), 500);
        assert!(names.iter().all(|name| name.len() <= 2));
        let above = "/s/01234567-4194304-18446744073709551615";
        let lower = || names.iter().map(String::as_str);
        let text = text(lower(), Some(above), Some(Volatile::Fsync)).unwrap();
        assert!(text.to_str().unwrap().starts_with("lowerdir=0:1:2:"));
    }

    #[test]
    fn what_would_be_cut_off_is_refused() {
        let name = "x".repeat(100);
        assert!(text((0..39).map(|_| &*name), None, None).is_some());
        assert!(text((0..41).map(|_| &*name), None, None).is_none());
    }

    #[test]
    fn a_read_only_mount_has_nothing_to_write_to() {
        let text = text(["a", "b"].into_iter(), None, Some(Volatile::Flag)).unwrap();
        assert_eq!(
            text.to_str().unwrap(),
            "lowerdir=a:b,index=off,metacopy=off,redirect_dir=nofollow,nfs_export=off,xino=auto"
        );
    }
}
