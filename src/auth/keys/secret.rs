//! What the secret of a key looks like: `clawhub_<id>_<random><checksum>`.
//!
//! The prefix is for people and scanners that look for lost secrets, and the checksum tells them (and us, without a look
//! into the database) what is none.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::rand;

use crate::runtime::Secret;

/// What every secret begins with.
pub const PREFIX: &str = "clawhub_";
/// Letters and digits of the id: 60 bits, written small so that it is easily read out.
const ID_LEN: usize = 12;
const ID_ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// Letters and digits that are random: 238 bits.
const RANDOM_LEN: usize = 40;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// A CRC-32 of all that stands before it.
const CHECKSUM_LEN: usize = 6;

/// The id of a key: it is in its secrets, and no secret itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(String);

impl KeyId {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Another one than any before.
    pub(super) fn random() -> Result<Self, String> {
        Ok(Self(random_text(ID_ALPHABET, ID_LEN)?))
    }
}

impl FromStr for KeyId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_id = text.len() == ID_LEN && text.bytes().all(|byte| ID_ALPHABET.contains(&byte));
        if is_id {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("{text:?} is no id of a key: it has {ID_LEN} small letters and digits"))
        }
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The secret of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySecret {
    id: KeyId,
    text: Secret,
}

impl KeySecret {
    /// One of a new key.
    ///
    /// # Errors
    /// Where the machine gives no random bytes.
    pub fn new() -> Result<Self, String> {
        Self::random(KeyId::random()?)
    }

    /// A new one of this key.
    ///
    /// # Errors
    /// Where the machine gives no random bytes.
    pub fn random(id: KeyId) -> Result<Self, String> {
        let text = format!("{PREFIX}{id}_{}", random_text(ALPHABET, RANDOM_LEN)?);
        let checksum = checksum(&text);
        Ok(Self { id, text: Secret::new(text + &checksum) })
    }

    /// Whose it is.
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// The text that its owner shows.
    pub fn text(&self) -> &Secret {
        &self.text
    }
}

impl FromStr for KeySecret {
    type Err = String;

    /// The message never holds the text.
    fn from_str(text: &str) -> Result<Self, String> {
        let none = || format!("is no secret of a key: those begin with {PREFIX:?}, and end with a checksum");
        let (id, random) =
            text.strip_prefix(PREFIX).and_then(|rest| rest.split_once('_')).ok_or_else(none)?;
        let id = id.parse().map_err(|_| none())?;
        let is_whole =
            random.len() == RANDOM_LEN + CHECKSUM_LEN && random.bytes().all(|byte| ALPHABET.contains(&byte));
        let (before, last) = text.split_at_checked(text.len() - CHECKSUM_LEN).ok_or_else(none)?;
        if is_whole && checksum(before) == last {
            Ok(Self { id, text: Secret::new(text) })
        } else {
            Err(none())
        }
    }
}

fn random_text(alphabet: &[u8], len: usize) -> Result<String, String> {
    let mut text = String::with_capacity(len);
    // Bytes beyond the last whole multiple would make some letters likelier than others.
    let fair = 256 - 256 % alphabet.len();
    while text.len() < len {
        let mut bytes = [0; 64];
        rand::fill(&mut bytes).map_err(|_| "the machine gives no random bytes".to_owned())?;
        let letters = bytes.iter().filter(|byte| usize::from(**byte) < fair);
        let letters = letters.map(|byte| char::from(alphabet[usize::from(*byte) % alphabet.len()]));
        text.extend(letters.take(len - text.len()));
    }
    Ok(text)
}

fn checksum(text: &str) -> String {
    let mut rest = crc32fast::hash(text.as_bytes());
    let mut digits = [b'0'; CHECKSUM_LEN];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[(rest % 62) as usize];
        rest /= 62;
    }
    digits.iter().copied().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_recognised_by_its_form_and_its_checksum() {
        let id: KeyId = KeyId::random().unwrap();
        let secret = KeySecret::random(id.clone()).unwrap();
        let text = secret.text().expose();
        assert!(text.starts_with("clawhub_") && text.len() == 8 + 12 + 1 + 40 + 6, "{text}");
        assert_eq!(text.parse::<KeySecret>().unwrap(), secret);
        assert_ne!(KeySecret::random(id).unwrap(), secret);
        for at in 0..text.len() {
            let mut changed = text.to_owned().into_bytes();
            changed[at] = if changed[at] == b'a' { b'b' } else { b'a' };
            assert!(String::from_utf8(changed).unwrap().parse::<KeySecret>().is_err(), "{at}");
            assert!(text[..at].parse::<KeySecret>().is_err(), "{at}");
        }
        for other in ["", "clawhub_", "clawhub_abc", "hunter2", "clawhub_é", &format!("{text} ")] {
            let error = other.parse::<KeySecret>().unwrap_err();
            assert!(error.contains("clawhub_") && !error.contains("hunter2"), "{error}");
        }
    }
}
