//! What lists have in common: pages that fit into a message, and the token of the next one.

use bytes::Bytes;
use prost::Message;
use souk_proto::common::v1::AsOf;
use souk_runtime::Failure;
use souk_views::read::{ListedRow, Page};

use super::entity::{earlier, stored};
use crate::{core::Core, page::Binding};

/// A page as a reply has it.
pub(super) struct Listing<M> {
    pub rows: Vec<M>,
    pub next_page_token: String,
    pub as_of: AsOf,
}

/// Bytes around one row in a reply.
const AROUND_ROW: usize = 8;

impl Core {
    /// Makes a page of entities of what was read. Rows that would not fit into a message are left to the next page; one
    /// row always fits.
    pub(super) fn listing<C, M>(
        &self,
        page: Page<ListedRow<C>>,
        binding: Binding<'_>,
        cursor: impl Fn(&C) -> Vec<u8>,
    ) -> Result<Listing<M>, Failure>
    where
        M: Message + Default,
    {
        let room = self.room(&self.freshness_of(&page.as_of, None));
        let fitting = fitting(page.rows.iter().map(|row| &row.body), room);
        let more = page.more || fitting < page.rows.len();
        let shown = &page.rows[..fitting];
        let stale_since = shown.iter().fold(None, |stale, row| earlier(stale, row.stale_since));
        let next_page_token = match shown.last() {
            Some(last) if more => binding.encode(&self.token_key, &cursor(&last.cursor)),
            _ => String::new(),
        };
        Ok(Listing {
            rows: shown.iter().map(|row| stored(row.body.clone())).collect::<Result<_, _>>()?,
            next_page_token,
            as_of: self.as_of(self.freshness_of(&page.as_of, stale_since)),
        })
    }
}

/// How many rows from the first on fit into `room` bytes; at least one, if there is any.
fn fitting<'a>(bodies: impl Iterator<Item = &'a Bytes>, room: usize) -> usize {
    let mut bytes = 0;
    bodies
        .enumerate()
        .take_while(|(index, body)| {
            bytes += body.len() + AROUND_ROW;
            *index == 0 || bytes <= room
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_ends_where_the_message_would_overflow() {
        let bodies = [Bytes::from(vec![0; 92]), Bytes::from(vec![0; 92]), Bytes::from(vec![0; 92])];
        assert_eq!(fitting(bodies.iter(), 1000), 3);
        assert_eq!(fitting(bodies.iter(), 200), 2);
        assert_eq!(fitting(bodies.iter(), 199), 1);
        assert_eq!(fitting(bodies.iter(), 10), 1, "a row larger than a page is sent alone");
        assert_eq!(fitting([].iter(), 10), 0);
    }
}
