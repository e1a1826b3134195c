//! Page tokens: opaque to callers, signed, and valid only for the list and the filter they were made for.

use data_encoding::BASE64URL_NOPAD;
use souk_event_sourcing::TokenKey;

/// Not made here, not for this list, or not for this filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a page token of this list with this filter")]
pub(crate) struct InvalidPageToken;

const FORMAT: u8 = 1;
const MAC_BYTES: usize = 8;
/// The longest cursor is a few ids.
const MAX_TEXT: usize = 1024;

/// What a page token belongs to: the list's name and the request's filter, encoded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Binding<'a> {
    pub list: &'a str,
    pub filter: &'a [u8],
}

impl Binding<'_> {
    /// The token that continues the list behind `cursor`.
    pub fn encode(&self, key: &TokenKey, cursor: &[u8]) -> String {
        let mac = self.mac(key, cursor);
        let mut bytes = Vec::with_capacity(1 + cursor.len() + MAC_BYTES);
        bytes.push(FORMAT);
        bytes.extend_from_slice(cursor);
        bytes.extend_from_slice(&mac);
        BASE64URL_NOPAD.encode(&bytes)
    }

    /// The cursor in a token; `None` for the empty text, which asks for the first page.
    pub fn decode(&self, key: &TokenKey, text: &str) -> Result<Option<Vec<u8>>, InvalidPageToken> {
        if text.is_empty() {
            return Ok(None);
        }
        if text.len() > MAX_TEXT {
            return Err(InvalidPageToken);
        }
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| InvalidPageToken)?;
        let (content, mac) = bytes.split_at_checked(bytes.len().saturating_sub(MAC_BYTES)).ok_or(InvalidPageToken)?;
        let (format, cursor) = content.split_first().ok_or(InvalidPageToken)?;
        let expected = self.mac(key, cursor);
        let difference = expected.iter().zip(mac).fold(0, |difference, (a, b)| difference | (a ^ b));
        if *format != FORMAT || mac.len() != MAC_BYTES || difference != 0 {
            return Err(InvalidPageToken);
        }
        Ok(Some(cursor.to_vec()))
    }

    /// Each part is preceded by its length, so that no two bindings sign the same bytes.
    fn mac(&self, key: &TokenKey, cursor: &[u8]) -> [u8; MAC_BYTES] {
        let mut signed = Vec::with_capacity(self.list.len() + self.filter.len() + cursor.len() + 24);
        for part in [self.list.as_bytes(), self.filter, cursor] {
            signed.extend_from_slice(&(part.len() as u64).to_be_bytes());
            signed.extend_from_slice(part);
        }
        key.mac("page token", &signed)
    }
}

/// Writes the parts of a cursor.
#[derive(Debug, Default)]
pub(crate) struct CursorWriter(Vec<u8>);

impl CursorWriter {
    pub fn number(mut self, number: i64) -> Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    pub fn text(mut self, text: &str) -> Self {
        self.0.extend_from_slice(&(text.len() as u16).to_be_bytes());
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Reads them back. What was signed here reads well; another release may have written it otherwise.
#[derive(Debug)]
pub(crate) struct CursorReader<'a>(&'a [u8]);

impl<'a> CursorReader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub fn number(&mut self) -> Result<i64, InvalidPageToken> {
        let (number, rest) = self.0.split_first_chunk().ok_or(InvalidPageToken)?;
        self.0 = rest;
        Ok(i64::from_be_bytes(*number))
    }

    pub fn text(&mut self) -> Result<String, InvalidPageToken> {
        let (length, rest) = self.0.split_first_chunk().ok_or(InvalidPageToken)?;
        let (text, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into()).ok_or(InvalidPageToken)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).map_err(|_| InvalidPageToken)
    }

    pub fn finish(self) -> Result<(), InvalidPageToken> {
        if self.0.is_empty() { Ok(()) } else { Err(InvalidPageToken) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: TokenKey = TokenKey::new([7; 32]);
    const PRODUCTS: Binding<'_> = Binding { list: "products", filter: b"state=2" };

    #[test]
    fn a_page_token_round_trips_and_is_opaque() {
        let cursor = CursorWriter::default().number(-5).text("p-1").finish();
        let text = PRODUCTS.encode(&KEY, &cursor);
        let read = PRODUCTS.decode(&KEY, &text).unwrap().unwrap();
        let mut reader = CursorReader::new(&read);
        assert_eq!((reader.number(), reader.text(), reader.finish()), (Ok(-5), Ok("p-1".to_owned()), Ok(())));
        assert_eq!(PRODUCTS.decode(&KEY, ""), Ok(None));
    }

    #[test]
    fn another_filter_list_or_key_is_refused() {
        let text = PRODUCTS.encode(&KEY, b"p-1");
        assert!(PRODUCTS.decode(&KEY, &text).is_ok());
        assert_eq!(Binding { filter: b"state=3", ..PRODUCTS }.decode(&KEY, &text), Err(InvalidPageToken));
        assert_eq!(Binding { list: "orders", ..PRODUCTS }.decode(&KEY, &text), Err(InvalidPageToken));
        assert_eq!(PRODUCTS.decode(&TokenKey::new([8; 32]), &text), Err(InvalidPageToken));
        // The border between filter and cursor is signed too.
        assert_eq!(Binding { filter: b"state=2p", ..PRODUCTS }.decode(&KEY, &PRODUCTS.encode(&KEY, b"-1")), Err(InvalidPageToken));
    }

    #[test]
    fn a_changed_token_is_refused() {
        let text = PRODUCTS.encode(&KEY, b"p-1");
        for index in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[index] = if changed[index] == b'A' { b'B' } else { b'A' };
            assert_eq!(PRODUCTS.decode(&KEY, std::str::from_utf8(&changed).unwrap()), Err(InvalidPageToken), "byte {index}");
        }
        for bad in ["A", "AA", "AAAAAAAAAAA", &text[1..], &"A".repeat(2000), "ä", " "] {
            assert_eq!(PRODUCTS.decode(&KEY, bad), Err(InvalidPageToken), "{bad:?}");
        }
    }

    #[test]
    fn a_cursor_of_another_shape_is_refused() {
        assert_eq!(CursorReader::new(&[0; 7]).number(), Err(InvalidPageToken));
        assert_eq!(CursorReader::new(&[0, 9, b'a']).text(), Err(InvalidPageToken));
        assert_eq!(CursorReader::new(&[1]).finish(), Err(InvalidPageToken));
    }
}
