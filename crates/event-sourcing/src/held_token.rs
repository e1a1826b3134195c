use crate::{InvalidToken, LogPosition, token::peek_part};

/// A consistency token in the hands of a caller, who has no key: its signed parts can be joined and compared, but
/// neither checked nor made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeldToken(Vec<(LogPosition, String)>);

impl HeldToken {
    /// Takes in the parts of `text`; of two on one log the later stays.
    ///
    /// # Errors
    /// When a part has another layout; nothing of it is taken in then.
    pub fn merge(&mut self, text: &str) -> Result<(), InvalidToken> {
        if text.is_empty() {
            return Ok(());
        }
        let parts: Vec<_> = text.split('.').map(|part| Ok((peek_part(part)?, part))).collect::<Result<_, _>>()?;
        for (position, part) in parts {
            match self.0.iter_mut().find(|(held, _)| held.log == position.log) {
                Some((held, _)) if (held.epoch, held.position) >= (position.epoch, position.position) => {}
                Some(slot) => *slot = (position, part.to_owned()),
                None => self.0.push((position, part.to_owned())),
            }
        }
        Ok(())
    }

    /// The token to send.
    pub fn text(&self) -> String {
        let parts: Vec<_> = self.0.iter().map(|(_, part)| part.as_str()).collect();
        parts.join(".")
    }

    pub fn positions(&self) -> impl Iterator<Item = LogPosition> + '_ {
        self.0.iter().map(|(position, _)| *position)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Epoch, LogId, Partition, Position, Region, Token, TokenKey};

    const KEY: TokenKey = TokenKey::new([7; 32]);

    fn at(partition: u16, epoch: u64, position: u64) -> LogPosition {
        LogPosition { log: LogId { region: Region(1), partition: Partition(partition) }, epoch: Epoch(epoch), position: Position(position) }
    }

    fn signed(positions: impl IntoIterator<Item = LogPosition>) -> String {
        positions.into_iter().collect::<Token>().encode(&KEY)
    }

    #[test]
    fn the_later_part_of_each_log_is_held_and_its_signature_with_it() {
        let mut held = HeldToken::default();
        held.merge("").unwrap();
        assert!(held.is_empty() && held.text().is_empty());
        for text in [signed([at(3, 5, 10), at(4, 5, 1)]), signed([at(3, 5, 9)]), signed([at(3, 6, 2)]), signed([at(3, 5, 99)])] {
            held.merge(&text).unwrap();
        }
        assert_eq!(held.positions().collect::<Vec<_>>(), [at(3, 6, 2), at(4, 5, 1)]);
        assert_eq!(Token::decode(&held.text(), &KEY).unwrap().parts(), [at(3, 6, 2), at(4, 5, 1)]);
    }

    #[test]
    fn what_is_no_token_changes_nothing() {
        let mut held = HeldToken::default();
        let good = signed([at(3, 5, 10)]);
        held.merge(&good).unwrap();
        for bad in ["x".to_owned(), format!("{}.", signed([at(3, 9, 9)])), format!("{}.AAAA", signed([at(3, 9, 9)]))] {
            assert_eq!(held.merge(&bad), Err(InvalidToken));
        }
        assert_eq!(held.text(), good);
    }
}
