use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::Region;

/// Number of events of a stream; an empty stream has version 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub u64);

impl Version {
    /// The version after one more event.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Name of one entity's stream: category, '-', id, as in `order-06e7…`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(Arc<str>);

/// A stored stream name without a category or an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no stream name: want category-id")]
pub struct InvalidStreamId(String);

impl StreamId {
    /// The stream of `id` in `category`. A category holds no '-'; ids may.
    pub fn new(category: &str, id: &str) -> Self {
        debug_assert!(!category.is_empty() && !category.contains('-'), "category {category:?}");
        Self(format!("{category}-{id}").into())
    }

    pub fn category(&self) -> &str {
        self.split().0
    }

    pub fn id(&self) -> &str {
        self.split().1
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn split(&self) -> (&str, &str) {
        self.0.split_once('-').unwrap_or((&self.0, ""))
    }
}

impl FromStr for StreamId {
    type Err = InvalidStreamId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('-') {
            Some((category, id)) if !category.is_empty() && !id.is_empty() => Ok(Self(text.into())),
            _ => Err(InvalidStreamId(text.to_owned())),
        }
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a caller saw of an entity, to be sent back as a condition. Written `region-version`; entities that several
/// regions write will list one such pair per region, which is why it is opaque to callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Etag {
    pub region: Region,
    pub version: Version,
}

/// Text that is no etag of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an etag of this service")]
pub struct InvalidEtag;

impl fmt::Display for Etag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.region, self.version)
    }
}

impl FromStr for Etag {
    type Err = InvalidEtag;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (region, version) = text.split_once('-').ok_or(InvalidEtag)?;
        Ok(Self { region: Region(region.parse().map_err(|_| InvalidEtag)?), version: Version(version.parse().map_err(|_| InvalidEtag)?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_name_splits_at_its_first_dash() {
        let stream: StreamId = "cart-c-1".parse().unwrap();
        assert_eq!((stream.category(), stream.id()), ("cart", "c-1"));
        assert_eq!(stream, StreamId::new("cart", "c-1"));
        for bad in ["", "cart", "-c", "cart-"] {
            assert!(bad.parse::<StreamId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_etag_round_trips() {
        let etag = Etag { region: Region(1), version: Version(7) };
        assert_eq!(etag.to_string(), "1-7");
        assert_eq!(etag.to_string().parse(), Ok(etag));
        assert!("1".parse::<Etag>().is_err() && "a-b".parse::<Etag>().is_err());
    }
}
