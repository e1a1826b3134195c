use std::fmt;

use data_encoding::BASE64URL_NOPAD;

use crate::{Epoch, LogId, LogPosition, Partition, Position, Region};

/// Most parts one token may have: every log of a large installation, twice.
const MAX_PARTS: usize = 256;
const PART_BYTES: usize = 1 + 2 + 2 + 8 + 8 + MAC_BYTES;
const MAC_BYTES: usize = 8;
const FORMAT: u8 = 1;

/// A consistency token: positions a reader wants to see, at most one per log. As text it is one signed part per
/// log, joined by '.', so that whoever holds several tokens can join them without a key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Token(Vec<LogPosition>);

/// Malformed, too long, or signed with another key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a token of this installation")]
pub struct InvalidToken;

/// Key that signs tokens; all services of an installation share it.
#[derive(Clone)]
pub struct TokenKey([u8; 32]);

impl TokenKey {
    pub const fn new(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// From 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?;
        bytes.try_into().ok().map(Self)
    }

    /// Keyed BLAKE3 of `purpose` and `bytes`, cut to 8 bytes: enough against guessing over the network.
    pub fn mac(&self, purpose: &str, bytes: &[u8]) -> [u8; MAC_BYTES] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(purpose.as_bytes());
        hasher.update(&[0]);
        hasher.update(bytes);
        let mut mac = [0; MAC_BYTES];
        mac.copy_from_slice(&hasher.finalize().as_bytes()[..MAC_BYTES]);
        mac
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(…)")
    }
}

impl From<LogPosition> for Token {
    fn from(position: LogPosition) -> Self {
        Self(vec![position])
    }
}

impl FromIterator<LogPosition> for Token {
    fn from_iter<I: IntoIterator<Item = LogPosition>>(positions: I) -> Self {
        let mut token = Self::default();
        token.extend(positions);
        token
    }
}

impl Extend<LogPosition> for Token {
    fn extend<I: IntoIterator<Item = LogPosition>>(&mut self, positions: I) {
        positions.into_iter().for_each(|position| self.insert(position));
    }
}

impl Token {
    /// What the token says of `log`.
    pub fn of(&self, log: LogId) -> Option<LogPosition> {
        self.0.iter().find(|part| part.log == log).copied()
    }

    pub fn parts(&self) -> &[LogPosition] {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a position; of two on one log the later epoch wins, then the later position.
    pub fn insert(&mut self, position: LogPosition) {
        match self.0.iter_mut().find(|part| part.log == position.log) {
            Some(part) if (part.epoch, part.position) < (position.epoch, position.position) => *part = position,
            Some(_) => {}
            None => self.0.push(position),
        }
    }

    /// The token as text, safe in URLs, JSON and metadata; empty for an empty token.
    pub fn encode(&self, key: &TokenKey) -> String {
        let parts: Vec<_> = self.0.iter().map(|part| BASE64URL_NOPAD.encode(&encode_part(part, key))).collect();
        parts.join(".")
    }

    /// Reads the text of a token; the empty text is the empty token.
    pub fn decode(text: &str, key: &TokenKey) -> Result<Self, InvalidToken> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let mut token = Self::default();
        for (count, part) in text.split('.').enumerate() {
            if count == MAX_PARTS {
                return Err(InvalidToken);
            }
            token.insert(decode_part(part, key)?);
        }
        Ok(token)
    }
}

fn encode_part(part: &LogPosition, key: &TokenKey) -> [u8; PART_BYTES] {
    let mut bytes = [0; PART_BYTES];
    bytes[0] = FORMAT;
    bytes[1..3].copy_from_slice(&part.log.region.0.to_be_bytes());
    bytes[3..5].copy_from_slice(&part.log.partition.0.to_be_bytes());
    bytes[5..13].copy_from_slice(&part.epoch.0.to_be_bytes());
    bytes[13..21].copy_from_slice(&part.position.0.to_be_bytes());
    let mac = key.mac("consistency token", &bytes[..21]);
    bytes[21..].copy_from_slice(&mac);
    bytes
}

fn decode_part(text: &str, key: &TokenKey) -> Result<LogPosition, InvalidToken> {
    let bytes = part_bytes(text)?;
    let genuine = constant_time_eq(&key.mac("consistency token", &bytes[..21]), &bytes[21..]);
    if genuine { Ok(read_part(&bytes)) } else { Err(InvalidToken) }
}

/// What a part says, its signature unchecked.
pub(crate) fn peek_part(text: &str) -> Result<LogPosition, InvalidToken> {
    part_bytes(text).map(|bytes| read_part(&bytes))
}

fn part_bytes(text: &str) -> Result<[u8; PART_BYTES], InvalidToken> {
    let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| InvalidToken)?;
    let bytes: [u8; PART_BYTES] = bytes.try_into().map_err(|_| InvalidToken)?;
    if bytes[0] == FORMAT { Ok(bytes) } else { Err(InvalidToken) }
}

fn read_part(bytes: &[u8; PART_BYTES]) -> LogPosition {
    let number = |range: std::ops::Range<usize>| bytes[range].iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    LogPosition {
        log: LogId { region: Region(number(1..3) as u16), partition: Partition(number(3..5) as u16) },
        epoch: Epoch(number(5..13)),
        position: Position(number(13..21)),
    }
}

/// Comparison whose time does not depend on where the first difference lies.
fn constant_time_eq(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len() && left.iter().zip(right).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: TokenKey = TokenKey::new([7; 32]);

    fn at(partition: u16, epoch: u64, position: u64) -> LogPosition {
        LogPosition { log: LogId { region: Region(1), partition: Partition(partition) }, epoch: Epoch(epoch), position: Position(position) }
    }

    #[test]
    fn a_token_round_trips_and_is_pinned() {
        let token: Token = [at(3, 1_700_000_000_000, 42), at(9, 5, 1)].into_iter().collect();
        let text = token.encode(&KEY);
        assert_eq!(text, include_str!("../golden/token.txt").trim());
        assert_eq!(Token::decode(&text, &KEY), Ok(token));
        assert_eq!(Token::decode("", &KEY), Ok(Token::default()));
    }

    #[test]
    fn joined_tokens_keep_the_later_position_of_each_log() {
        let texts = [at(3, 5, 10), at(4, 5, 1), at(3, 6, 2), at(3, 6, 1)].map(|part| Token::from(part).encode(&KEY));
        let token = Token::decode(&texts.join("."), &KEY).unwrap();
        assert_eq!(token.parts(), [at(3, 6, 2), at(4, 5, 1)]);
    }

    #[test]
    fn a_changed_or_foreign_token_is_refused() {
        let text = Token::from(at(3, 5, 10)).encode(&KEY);
        for index in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[index] = if changed[index] == b'A' { b'B' } else { b'A' };
            assert_eq!(Token::decode(std::str::from_utf8(&changed).unwrap(), &KEY), Err(InvalidToken), "byte {index}");
        }
        assert_eq!(Token::decode(&text, &TokenKey::new([8; 32])), Err(InvalidToken));
        for bad in [".", "A", "A.", &format!("{text}.")] {
            assert_eq!(Token::decode(bad, &KEY), Err(InvalidToken), "{bad:?}");
        }
    }
}
