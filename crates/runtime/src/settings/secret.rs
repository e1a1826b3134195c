use std::{fmt, ops::Deref, path::PathBuf};

use serde::Deserialize;

/// A text that must not be printed: `Debug` shows only that it is there. Written as it is, or as `{ file = "/path" }`: then
/// it is what the file holds, without the line break at its end.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Secret(String);

/// A secret as settings write it.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a string or { file = \"/path\" }")]
enum Written {
    Here(String),
    There(SecretFile),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SecretFile {
    file: PathBuf,
}

impl TryFrom<Written> for Secret {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let path = match written {
            Written::Here(text) => return Ok(Self(text)),
            Written::There(SecretFile { file }) => file,
        };
        let mut text = std::fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        text.truncate(text.trim_end_matches(['\r', '\n']).len());
        Ok(Self(text))
    }
}

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl Deref for Secret {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "unset" } else { "***" })
    }
}
