//! Requests as callers send them, checked whole: all bad fields are told at once.

use std::fmt::Display;

use souk_event_sourcing::{Token, TokenKey, UnixMillis};
use souk_runtime::{Failure, Violations};
use tonic::codegen::http::HeaderMap;

use crate::page::{Binding, CursorReader, InvalidPageToken};

/// Metadata key of a token, as bad fields name it.
const TOKEN_METADATA: &str = "souk-token";
/// Rows of a page when the caller does not say, and at most.
const PAGE_SIZES: (usize, usize) = (50, 1000);
/// Longest text of a filter.
const MAX_FILTER_CHARS: usize = 64;

/// Collects what is wrong with one request.
#[derive(Default)]
pub(crate) struct Check {
    bad: Violations,
    /// The reason, as long as everything wrong has the same.
    reason: Option<&'static str>,
}

const INVALID_FIELDS: &str = "INVALID_FIELDS";

impl Check {
    /// A field that is parsed by its own rules.
    pub fn field<T, E: Display>(&mut self, name: impl Into<String>, parsed: Result<T, E>) -> Option<T> {
        self.parsed(INVALID_FIELDS, name, parsed)
    }

    pub fn require(&mut self, fine: bool, name: impl Into<String>, want: &str) {
        if !fine {
            self.field::<(), _>(name, Err(want));
        }
    }

    /// The token of the request's field joined with that of its metadata.
    pub fn token(&mut self, key: &TokenKey, field: &str, metadata: &HeaderMap) -> Token {
        const REASON: &str = "INVALID_TOKEN";
        let mut token = self.parsed(REASON, "token", Token::decode(field, key)).unwrap_or_default();
        let sent = souk_runtime::token(metadata).map_err(|failure| failure.message);
        let sent = sent.and_then(|text| Token::decode(text, key).map_err(|error| error.to_string()));
        if let Some(sent) = self.parsed(REASON, TOKEN_METADATA, sent) {
            token.extend(sent.parts().iter().copied());
        }
        token
    }

    /// The cursor of a page token; `None` on the first page.
    pub fn page_token<C>(
        &mut self,
        key: &TokenKey,
        binding: Binding<'_>,
        text: &str,
        read: impl FnOnce(&mut CursorReader<'_>) -> Result<C, InvalidPageToken>,
    ) -> Option<C> {
        let cursor = binding.decode(key, text).and_then(|cursor| {
            let Some(cursor) = cursor else { return Ok(None) };
            let mut reader = CursorReader::new(&cursor);
            let cursor = read(&mut reader)?;
            reader.finish().map(|()| Some(cursor))
        });
        self.parsed("INVALID_PAGE_TOKEN", "page_token", cursor).flatten()
    }

    /// How many rows to answer with.
    pub fn page_size(&mut self, asked: i32) -> usize {
        let (default, most) = PAGE_SIZES;
        match usize::try_from(asked) {
            Ok(0) => default,
            Ok(size) if size <= most => size,
            _ => {
                self.require(false, "page_size", &format!("want 0–{most}"));
                default
            }
        }
    }

    /// A text to filter by; `None` when empty.
    pub fn filter(&mut self, name: &str, text: &str) -> Option<String> {
        // A NUL is valid UTF-8 and no database takes it.
        let fine = text.chars().count() <= MAX_FILTER_CHARS && !text.contains('\0');
        self.require(fine, name, &format!("want at most {MAX_FILTER_CHARS} characters, none of them NUL"));
        (fine && !text.is_empty()).then(|| text.to_owned())
    }

    /// A number that stands for one of an enumeration's values; `None` when unspecified.
    pub fn choice<T: TryFrom<i32> + Default + PartialEq>(&mut self, name: &str, number: i32) -> Option<T> {
        let value = self.field(name, T::try_from(number).map_err(|_| "want one of the named values"))?;
        (value != T::default()).then_some(value)
    }

    /// A moment; `None` when absent.
    pub fn time(&mut self, name: &str, time: Option<prost_types::Timestamp>) -> Option<UnixMillis> {
        let time = time?;
        let fine = (MIN_SECONDS..=MAX_SECONDS).contains(&time.seconds) && (0..1_000_000_000).contains(&time.nanos);
        self.require(fine, name, "want a time between the years 1 and 9999");
        // The next whole millisecond: stored times have no parts of one.
        fine.then(|| UnixMillis(time.seconds * 1000 + i64::from(time.nanos + 999_999) / 1_000_000))
    }

    /// # Errors
    /// INVALID_ARGUMENT with all bad fields. The reason is that of tokens when nothing else is wrong.
    pub fn finish(self) -> Result<(), Failure> {
        let reason = self.reason.unwrap_or(INVALID_FIELDS);
        self.bad.finish().map_err(|failure| Failure { reason: reason.into(), ..failure })
    }

    fn parsed<T, E: Display>(&mut self, reason: &'static str, name: impl Into<String>, parsed: Result<T, E>) -> Option<T> {
        if parsed.is_err() {
            self.reason = Some(self.reason.filter(|before| *before != reason).map_or(reason, |_| INVALID_FIELDS));
        }
        self.bad.check(name, parsed)
    }
}

/// What google.protobuf.Timestamp allows: 0001-01-01 to 9999-12-31.
const MIN_SECONDS: i64 = -62_135_596_800;
const MAX_SECONDS: i64 = 253_402_300_799;

#[cfg(test)]
mod tests {
    use souk_event_sourcing::{Epoch, LogId, LogPosition, Partition, Position, Region};
    use souk_proto::catalog::v1::ProductState;

    use super::*;

    const KEY: TokenKey = TokenKey::new([7; 32]);

    fn token(partition: u16, position: u64) -> Token {
        let log = LogId { region: Region(1), partition: Partition(partition) };
        LogPosition { log, epoch: Epoch(1), position: Position(position) }.into()
    }

    #[test]
    fn tokens_of_field_and_metadata_are_joined() {
        let mut metadata = HeaderMap::new();
        metadata.insert(TOKEN_METADATA, token(2, 9).encode(&KEY).parse().unwrap());
        let mut check = Check::default();
        let joined = check.token(&KEY, &token(1, 5).encode(&KEY), &metadata);
        assert!(check.finish().is_ok());
        assert_eq!(joined.parts().len(), 2);
    }

    #[test]
    fn a_forged_token_alone_has_its_own_reason() {
        let mut check = Check::default();
        check.token(&KEY, "forged", &HeaderMap::new());
        let failure = check.finish().unwrap_err();
        assert_eq!((failure.code, &*failure.reason), (tonic::Code::InvalidArgument, "INVALID_TOKEN"));
        let mut metadata = HeaderMap::new();
        metadata.insert(TOKEN_METADATA, "forged".parse().unwrap());
        let mut check = Check::default();
        check.token(&KEY, "", &metadata);
        let failure = check.finish().unwrap_err();
        assert_eq!((&*failure.reason, failure.field_violations[0].0.as_str()), ("INVALID_TOKEN", "souk-token"));
    }

    #[test]
    fn all_bad_fields_are_told_at_once() {
        let mut check = Check::default();
        check.page_size(-1);
        check.filter("tag", "a\0b");
        check.choice::<ProductState>("state", 99);
        check.token(&KEY, "forged", &HeaderMap::new());
        let binding = Binding { list: "products", filter: b"" };
        check.page_token(&KEY, binding, "forged", |cursor| cursor.text());
        let failure = check.finish().unwrap_err();
        let fields: Vec<_> = failure.field_violations.iter().map(|(field, _)| field.as_str()).collect();
        assert_eq!((&*failure.reason, fields), ("INVALID_FIELDS", vec!["page_size", "tag", "state", "token", "page_token"]));
    }

    #[test]
    fn good_fields_are_taken() {
        let mut check = Check::default();
        assert_eq!((check.page_size(0), check.page_size(1), check.page_size(1000)), (50, 1, 1000));
        assert_eq!((check.filter("tag", ""), check.filter("tag", "é")), (None, Some("é".to_owned())));
        assert_eq!(check.choice::<ProductState>("state", 0), None);
        assert_eq!(check.choice("state", 2), Some(ProductState::Published));
        assert_eq!(check.time("from_time", None), None);
        let time = prost_types::Timestamp { seconds: 1, nanos: 1 };
        assert_eq!(check.time("from_time", Some(time)), Some(UnixMillis(1001)));
        assert!(check.finish().is_ok());
        for (seconds, nanos) in [(MAX_SECONDS + 1, 0), (MIN_SECONDS - 1, 0), (0, -1), (0, 1_000_000_000)] {
            let mut check = Check::default();
            check.time("from_time", Some(prost_types::Timestamp { seconds, nanos }));
            assert!(check.finish().is_err(), "{seconds}.{nanos}");
        }
        let mut check = Check::default();
        check.page_size(1001);
        assert!(check.finish().is_err());
    }
}
