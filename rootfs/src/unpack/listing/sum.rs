//! XXH3-128 sums: what finds damage in a layer at the speed of memory.
//!
//! Used by the listing alone. No defence against people: whoever may write to a store may write
//! its listings, too. What comes from outside is verified by [`crate::Digest`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_128;
use twox_hash::xxhash3_128::Hasher;

/// The XXH3-128 sum of some bytes; written as 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Sum(u128);

/// A text that is no sum.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not 32 hexadecimal digits")]
pub(crate) struct NoSum(String);

/// A sum of bytes that come one piece after the other.
pub(crate) struct Summing(Hasher);

impl fmt::Debug for Summing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Summing").finish_non_exhaustive()
    }
}

impl Summing {
    pub(crate) fn new() -> Self {
        Self(Hasher::new())
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    pub(crate) fn sum(&self) -> Sum {
        Sum(self.0.finish_128())
    }
}

impl Sum {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(XxHash3_128::oneshot(bytes))
    }

    /// Its digits, without a detour through formatting: this runs once for each file.
    pub(super) fn digits(self) -> [u8; 32] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 32];
        let bytes = self.0.to_be_bytes();
        for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        text
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for Sum {
    type Err = NoSum;

    fn from_str(text: &str) -> Result<Self, NoSum> {
        let plain = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u128::from_str_radix(text, 16).ok().filter(|_| plain);
        let wrong = || NoSum(text.chars().take(40).collect());
        number.map(Self).ok_or_else(wrong)
    }
}

impl TryFrom<String> for Sum {
    type Error = NoSum;

    fn try_from(text: String) -> Result<Self, NoSum> {
        text.parse()
    }
}

impl From<Sum> for String {
    fn from(sum: Sum) -> Self {
        sum.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_does_not_depend_on_the_pieces() {
        let bytes = b"some bytes".repeat(100);
        let mut summing = Summing::new();
        for piece in bytes.chunks(7) {
            summing.add(piece);
        }
        let sum = Sum::of(&bytes);
        assert_eq!(summing.sum(), sum);
        let text = sum.to_string();
        assert_eq!(text.as_bytes(), sum.digits());
        assert_eq!(text.parse::<Sum>().unwrap(), sum);
        for bad in ["", "+1", &text[1..], &format!("+{}", &text[1..])] {
            assert!(bad.parse::<Sum>().is_err(), "{bad}");
        }
        // The reference value of the algorithm for no bytes at all.
        assert_eq!(Sum::of(b"").to_string(), "99aa06d3014798d86001c324468d497f");
    }
}
