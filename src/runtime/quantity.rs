//! Quantities as people write them.

use std::fmt;
use std::str::FromStr;

/// A number of bytes, written as `64MiB`, `1.5GB` or a plain number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Bytes(u64);

impl Bytes {
    /// `n` bytes.
    pub const fn new(n: u64) -> Self {
        Self(n)
    }

    /// `n` · 1024 bytes.
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    /// `n` · 1024² bytes.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// `n` · 1024³ bytes.
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// The number of bytes.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The number of bytes, or `usize::MAX` where it does not fit.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<bytesize::ByteSize>().map(|size| Self(size.as_u64()))
    }
}

impl fmt::Display for Bytes {
    /// The largest binary unit that shows the number without loss, as in `64MiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let (mut value, mut unit) = (self.0, 0);
        while value != 0 && value % 1024 == 0 && unit + 1 < UNITS.len() {
            value /= 1024;
            unit += 1;
        }
        write!(f, "{value}{}", UNITS[unit])
    }
}

/// A share of a whole, from `0%` to `100%`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Percent(u8);

impl Percent {
    /// `n` hundredths of the whole.
    ///
    /// # Panics
    /// When `n` is above 100; it is meant for constants.
    pub const fn new(n: u8) -> Self {
        assert!(n <= 100, "a share of a whole is at most 100%");
        Self(n)
    }

    /// This share of `whole`, rounded down.
    pub fn of(self, whole: u64) -> u64 {
        // The product of a u64 and a number up to 100 fits a u128, and the quotient a u64.
        u64::try_from(u128::from(whole) * u128::from(self.0) / 100).unwrap_or(whole)
    }
}

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_suffix('%').ok_or("a share is written with its sign, as in 25%")?;
        match digits.trim().parse::<u8>() {
            Ok(n) if n <= 100 => Ok(Self(n)),
            _ => Err("a share is a whole number from 0% to 100%".to_owned()),
        }
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_read_as_operators_write_them() {
        for (text, bytes) in [("64MiB", 64 << 20), ("1.5GB", 1_500_000_000), ("4096", 4096), ("1 KiB", 1024)]
        {
            assert_eq!(text.parse::<Bytes>().unwrap().as_u64(), bytes, "{text}");
        }
        assert!("many".parse::<Bytes>().is_err());
    }

    proptest! {
        #[test]
        fn sizes_survive_being_shown(n in 0u64..1 << 52) {
            prop_assert_eq!(Bytes::new(n).to_string().parse::<Bytes>().unwrap(), Bytes::new(n));
        }

        #[test]
        fn a_share_never_exceeds_the_whole(n in 0u8..=100, whole: u64) {
            prop_assert!(Percent::new(n).of(whole) <= whole);
        }
    }
}
