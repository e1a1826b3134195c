use std::borrow::Cow;

use crate::DecodeError;

/// Brings the payload of one event from one schema version to the next. A payload it cannot read yields `None`.
pub(crate) struct Upcaster {
    pub kind: &'static str,
    pub from: u32,
    pub up: fn(&[u8]) -> Option<Vec<u8>>,
}

/// All upcasters. An event whose shape changes beyond what protobuf bears gets one here; its newest version follows.
pub(crate) const UPCASTERS: &[Upcaster] = &[];

/// Schema version under which `kind` is written now.
pub(crate) fn newest(table: &[Upcaster], kind: &str) -> u32 {
    table.iter().filter(|upcaster| upcaster.kind == kind).map(|upcaster| upcaster.from + 1).max().unwrap_or(1)
}

/// The payload in its newest shape.
pub(crate) fn upcast<'a>(table: &[Upcaster], kind: &str, schema_version: u32, payload: &'a [u8]) -> Result<Cow<'a, [u8]>, DecodeError> {
    let newest = newest(table, kind);
    if schema_version > newest {
        return Err(DecodeError::TooNew { kind: kind.to_owned(), schema_version });
    }
    let malformed = || DecodeError::Malformed { kind: kind.to_owned() };
    let mut payload = Cow::Borrowed(payload);
    for version in schema_version..newest {
        let upcaster = table.iter().find(|upcaster| upcaster.kind == kind && upcaster.from == version).ok_or_else(malformed)?;
        payload = Cow::Owned((upcaster.up)(&payload).ok_or_else(malformed)?);
    }
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[Upcaster] = &[
        Upcaster { kind: "Greeted", from: 1, up: |payload| Some([payload, b", world"].concat()) },
        Upcaster { kind: "Greeted", from: 2, up: |payload| payload.starts_with(b"hello").then(|| [payload, b"!"].concat()) },
        Upcaster { kind: "Left", from: 1, up: |_| None },
    ];

    #[test]
    fn a_payload_goes_up_one_version_at_a_time() {
        assert_eq!(upcast(TABLE, "Greeted", 1, b"hello").unwrap(), b"hello, world!".as_slice());
        assert_eq!(upcast(TABLE, "Greeted", 2, b"hello").unwrap(), b"hello!".as_slice());
        assert_eq!(upcast(TABLE, "Greeted", 3, b"hello").unwrap(), b"hello".as_slice());
        assert_eq!((newest(TABLE, "Greeted"), newest(TABLE, "Other")), (3, 1));
    }

    #[test]
    fn what_cannot_be_brought_up_is_told_apart() {
        let malformed = |kind: &str| Err(DecodeError::Malformed { kind: kind.to_owned() });
        assert_eq!(upcast(TABLE, "Greeted", 4, b""), Err(DecodeError::TooNew { kind: "Greeted".into(), schema_version: 4 }));
        assert_eq!(upcast(TABLE, "Greeted", 0, b""), malformed("Greeted"));
        assert_eq!(upcast(TABLE, "Greeted", 2, b"bye"), malformed("Greeted"));
        assert_eq!(upcast(TABLE, "Left", 1, b""), malformed("Left"));
    }
}
