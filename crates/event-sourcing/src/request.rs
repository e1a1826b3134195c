use std::{fmt, str::FromStr};

use uuid::Uuid;

use crate::UnixMillis;

/// The caller's name for one command: repeated, it gets the same reply (law 10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub Uuid);

/// Text that is no UUID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("want a UUID, version 7 preferred")]
pub struct InvalidRequestId;

impl RequestId {
    /// When a version 7 id was made; `None` for other versions, whose age cannot be told.
    pub fn time(self) -> Option<UnixMillis> {
        (self.0.get_version_num() == 7).then(|| {
            let bytes = self.0.as_bytes();
            UnixMillis(bytes[..6].iter().fold(0, |time, byte| time << 8 | i64::from(*byte)))
        })
    }

    /// An id derived from this one and a `name`: version 7 with this one's first 48 bits, so that it keeps its time.
    /// Same inputs, same id: a process repeats its steps under the ids it used before.
    pub fn derive(self, name: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("souk request id v1");
        hasher.update(self.0.as_bytes());
        hasher.update(name.as_bytes());
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&self.0.as_bytes()[..6]);
        bytes[6..].copy_from_slice(&hasher.finalize().as_bytes()[..10]);
        Self(uuid::Builder::from_bytes(bytes).with_version(uuid::Version::SortRand).with_variant(uuid::Variant::RFC4122).into_uuid())
    }
}

impl FromStr for RequestId {
    type Err = InvalidRequestId;

    /// Only the hyphenated form, so that one id has one spelling.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let id = Uuid::try_parse(text).map_err(|_| InvalidRequestId)?;
        if text.len() != 36 || id.is_nil() || id.is_max() {
            return Err(InvalidRequestId);
        }
        Ok(Self(id))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_7_id_tells_its_time() {
        let id: RequestId = "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
        assert_eq!(id.time(), Some(UnixMillis(0x0189_0a5d_ac96)));
        let random: RequestId = "f47ac10b-58cc-4372-a567-0e02b2c3d479".parse().unwrap();
        assert_eq!(random.time(), None);
    }

    #[test]
    fn a_derived_id_keeps_the_time_prefix_and_is_pinned() {
        let id: RequestId = "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
        assert_eq!(id.derive("reserve/p-1/1").to_string(), include_str!("../golden/derived_request_id.txt").trim());
        assert_ne!(id.derive("a"), id.derive("b"));
    }

    #[test]
    fn only_plain_uuids_parse() {
        for bad in
            ["", "x", "00000000-0000-0000-0000-000000000000", "{01890a5d-ac96-774b-bcce-b302099a8057}", "01890a5dac96774bbcceb302099a8057"]
        {
            assert!(bad.parse::<RequestId>().is_err(), "{bad:?}");
        }
    }
}
