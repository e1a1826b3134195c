use std::{fmt, str::FromStr};

use crate::{Region, RequestId};

const BYTES: usize = 20;
const CHARS: usize = 32;
/// Crockford's base32 in lower case: no i, l, o, u (crockford.com/base32.html).
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// An id that follows from a request: 6 bytes time prefix of the request id, 2 bytes home region, 4 bytes routing hash of
/// the entity it belongs to, 8 bytes derived from request id and name. Written as 32 characters of base32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MintedId([u8; BYTES]);

/// Text that is no minted id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("want 32 characters of lower-case base32")]
pub struct InvalidMintedId;

impl MintedId {
    /// Same inputs, same id: a repeated request mints it again.
    pub fn mint(request_id: RequestId, name: &str, routing_hash: u32, region: Region) -> Self {
        let mut bytes = [0; BYTES];
        bytes[..6].copy_from_slice(&request_id.0.as_bytes()[..6]);
        bytes[6..8].copy_from_slice(&region.0.to_be_bytes());
        bytes[8..12].copy_from_slice(&routing_hash.to_be_bytes());
        bytes[12..].copy_from_slice(&request_id.derive(name).0.as_bytes()[8..]);
        Self(bytes)
    }

    /// Home region when it was minted.
    pub fn region(&self) -> Region {
        Region(u16::from_be_bytes([self.0[6], self.0[7]]))
    }

    /// Decides the partition.
    pub fn routing_hash(&self) -> u32 {
        u32::from_be_bytes([self.0[8], self.0[9], self.0[10], self.0[11]])
    }
}

impl FromStr for MintedId {
    type Err = InvalidMintedId;

    /// Only the spelling `Display` writes.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != CHARS {
            return Err(InvalidMintedId);
        }
        let mut bytes = [0; BYTES];
        let (mut bits, mut held, mut at) = (0u32, 0u32, 0);
        for char in text.bytes() {
            let digit = ALPHABET.iter().position(|letter| *letter == char).ok_or(InvalidMintedId)?;
            bits = bits << 5 | digit as u32;
            held += 5;
            if held >= 8 {
                held -= 8;
                bytes[at] = (bits >> held) as u8;
                at += 1;
                bits &= (1 << held) - 1;
            }
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for MintedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; CHARS];
        let (mut bits, mut held, mut at) = (0u32, 0u32, 0);
        for byte in self.0 {
            bits = bits << 8 | u32::from(byte);
            held += 8;
            while held >= 5 {
                held -= 5;
                text[at] = ALPHABET[(bits >> held) as usize];
                at += 1;
                bits &= (1 << held) - 1;
            }
        }
        f.write_str(std::str::from_utf8(&text).expect("the alphabet is ASCII"))
    }
}

impl fmt::Debug for MintedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
