use std::{fs, path::PathBuf};

use prost_reflect::DynamicMessage;
use souk_devstack::souk_folder;
use souk_event_sourcing::HeldToken;

use super::text;

/// The consistency token kept between two calls of this command, so that a query sees the command before it.
pub struct TokenFile {
    /// `None` keeps nothing.
    path: Option<PathBuf>,
    token: HeldToken,
}

impl TokenFile {
    pub fn open(off: bool) -> Self {
        let path = (!off).then(|| souk_folder().join("session"));
        let mut token = HeldToken::default();
        if let Some(text) = path.as_ref().and_then(|path| fs::read_to_string(path).ok())
            && token.merge(text.trim()).is_err()
        {
            eprintln!("{}: not a token, ignored", path.as_ref().map(|path| path.display().to_string()).unwrap_or_default());
        }
        Self { path, token }
    }

    pub fn text(&self) -> String {
        self.token.text()
    }

    /// Takes in the token of a reply: its own field, or that of `as_of`.
    pub fn keep(&mut self, reply: &DynamicMessage) {
        let as_of = reply.get_field_by_name("as_of").and_then(|value| value.as_message().map(|as_of| text(as_of, "token")));
        for token in [Some(text(reply, "token")), as_of].into_iter().flatten() {
            // Not ours to complain: the reply is shown either way.
            let _ = self.token.merge(&token);
        }
        self.write();
    }

    pub fn forget(&mut self) {
        self.token = HeldToken::default();
        self.write();
    }

    fn write(&self) {
        let Some(path) = &self.path else { return };
        if let Err(error) = fs::write(path, format!("{}\n", self.token.text())) {
            eprintln!("{}: {error}; the next call will not send this call's token", path.display());
        }
    }
}
