//! What must hold of any bytes. A check panics when it does not.

use prost::Message;
use souk_bus::Subjects;
use souk_codec::{FOLD_VERSION, KINDS, decode, decode_snapshot, encode, encode_snapshot};
use souk_domain::{CustomerId, Entity, OrderId, ProductId, ReservationId, cart, order, product, stock};
use souk_event_sourcing::{
    Epoch, Etag, HeldToken, LogId, LogPosition, MintedId, Partition, Position, Region, RequestId, StreamId, Token, TokenKey,
};
use souk_proto::log::v1 as wire;
use uuid::Uuid;

use self::page::{Binding, CursorReader, CursorWriter};

/// Private to the query service, which nothing else may name.
#[path = "../../../services/query/src/page.rs"]
mod page;

const KEY: TokenKey = TokenKey::new([7; 32]);
const CATEGORIES: [&str; 5] = [product::CATEGORY, stock::CATEGORY, cart::CATEGORY, order::CATEGORY, "unknown"];

/// Takes values off the front of the data; nought when there is nothing left.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (taken, rest) = self.0.split_at(N.min(self.0.len()));
        self.0 = rest;
        let mut bytes = [0; N];
        bytes[..taken.len()].copy_from_slice(taken);
        bytes
    }

    fn byte(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    fn log(&mut self) -> LogId {
        LogId { region: Region(u16::from_be_bytes(self.take())), partition: Partition(u16::from_be_bytes(self.take())) }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(self.0).into_owned()
    }
}

/// A text with one byte replaced by another character of the alphabet.
fn changed(text: &str, at: usize, to: u8) -> Option<String> {
    let mut bytes = text.as_bytes().to_vec();
    let at = at.checked_rem(bytes.len())?;
    let to = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[usize::from(to) % 64];
    (std::mem::replace(&mut bytes[at], to) != to).then(|| String::from_utf8(bytes).expect("ASCII"))
}

/// Consistency tokens: what was signed is read back, nothing else is, and a holder without the key does no harm.
pub fn tokens(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(token) = Token::decode(&text, &KEY) {
        assert_eq!(Token::decode(&token.encode(&KEY), &KEY).as_ref(), Ok(&token));
    }
    let mut held = HeldToken::default();
    if held.merge(&text).is_ok() {
        let mut again = HeldToken::default();
        again.merge(&held.text()).expect("what it holds can be merged");
        assert_eq!(again, held);
    }

    let mut input = Input(data);
    let (at, to) = (usize::from(input.byte()), input.byte());
    let mut token = Token::default();
    while !input.0.is_empty() && token.parts().len() < 8 {
        let (log, epoch, position) = (input.log(), Epoch(u64::from_be_bytes(input.take())), Position(u64::from_be_bytes(input.take())));
        token.insert(LogPosition { log, epoch, position });
    }
    let text = token.encode(&KEY);
    assert_eq!(Token::decode(&text, &KEY), Ok(token));
    if let Some(forged) = changed(&text, at, to) {
        assert!(Token::decode(&forged, &KEY).is_err(), "{forged} was never signed");
    }
}

/// Page tokens: bound to list, filter and key; cursors are read back as they were written.
pub fn page_tokens(data: &[u8]) {
    let mut input = Input(data);
    let (at, to, split, number) = (input.byte(), input.byte(), input.byte(), i64::from_be_bytes(input.take()));
    let (filter, rest) = input.0.split_at(usize::from(split).min(input.0.len()));
    let binding = Binding { list: "list", filter };
    let _ = binding.decode(&KEY, &String::from_utf8_lossy(rest));
    let mut reader = CursorReader::new(rest);
    while reader.text().is_ok() && reader.number().is_ok() {}
    let _ = reader.finish();

    let text: String = Input(rest).text().chars().take(100).collect();
    let cursor = CursorWriter::default().number(number).text(&text).finish();
    let token = binding.encode(&KEY, &cursor);
    assert_eq!(binding.decode(&KEY, &token).as_ref(), Ok(&Some(cursor.clone())));
    let mut reader = CursorReader::new(&cursor);
    assert_eq!((reader.number(), reader.text(), reader.finish()), (Ok(number), Ok(text), Ok(())));
    let other = [filter, &[0]].concat();
    assert!(Binding { filter: &other, ..binding }.decode(&KEY, &token).is_err(), "the filter is signed");
    if let Some(forged) = changed(&token, at.into(), to) {
        assert!(binding.decode(&KEY, &forged).is_err(), "{forged} was never signed");
    }
}

/// Ids: one spelling each, and a stream that is named after one leads back to it.
pub fn ids(data: &[u8]) {
    let text = &*String::from_utf8_lossy(data);
    macro_rules! one_spelling {
        ($($id:ty),*) => {
            $(if let Ok(id) = text.parse::<$id>() {
                assert_eq!(id.to_string(), text);
            })*
        };
    }
    one_spelling!(ProductId, CustomerId, ReservationId, OrderId, MintedId, StreamId);
    if let Ok(id) = text.parse::<RequestId>() {
        assert_eq!(id.to_string(), text.to_ascii_lowercase());
        assert!(id.derive("step").time().is_some());
    }
    if let Ok(etag) = text.parse::<Etag>() {
        assert_eq!(etag.to_string().parse(), Ok(etag));
    }
    if let Ok(id) = text.parse::<ProductId>() {
        for (stream, category) in [(id.stream(), product::CATEGORY), (id.stock_stream(), stock::CATEGORY)] {
            assert_eq!(stream.as_str().parse().as_ref(), Ok(&stream));
            assert_eq!((stream.category(), stream.id()), (category, id.as_str()));
        }
    }

    let mut input = Input(data);
    let (request, region, routing_hash) = (RequestId(Uuid::from_bytes(input.take())), input.log().region, u32::from_be_bytes(input.take()));
    let id = MintedId::mint(request, &input.text(), routing_hash, region);
    assert_eq!(id.to_string().parse().as_ref(), Ok(&id));
    assert_eq!((id.region(), id.routing_hash()), (region, routing_hash));
}

/// Subjects: each log has names of its own, and a region's wildcard covers its logs and no others.
pub fn subjects(data: &[u8]) {
    let mut input = Input(data);
    let (one, other) = (input.log(), input.log());
    let prefix: String = input.text().chars().filter(|char| char.is_ascii_alphanumeric() || *char == '-').take(32).collect();
    let subjects = Subjects::new(if prefix.is_empty() { "souk" } else { &prefix });
    let names = |log| [subjects.stream(log), subjects.log(log), subjects.head(log), subjects.feed(log)];
    for (mine, its) in names(one).iter().zip(names(other)) {
        assert_eq!(*mine == its, one == other, "{mine} and {its}");
        assert!(!mine.contains(['*', '>', ' ']) && mine.is_ascii(), "{mine}");
    }
    let all: std::collections::BTreeSet<_> = names(one).into_iter().collect();
    assert_eq!(all.len(), 4, "{all:?}");
    for (pattern, name) in [(subjects.heads(one.region), subjects.head(other)), (subjects.feeds(one.region), subjects.feed(other))] {
        assert_eq!(covers(&pattern, &name), one.region == other.region, "{pattern} and {name}");
    }
}

/// As NATS matches: `*` stands for one word.
fn covers(pattern: &str, subject: &str) -> bool {
    let (pattern, subject) = (pattern.split('.'), subject.split('.'));
    pattern.clone().count() == subject.clone().count() && pattern.zip(subject).all(|(word, of)| word == "*" || word == of)
}

/// Stored payloads and snapshots: damage is refused, what is read can be written and read again, and folding is total.
pub fn payloads(data: &[u8]) {
    let mut input = Input(data);
    let category = CATEGORIES[usize::from(input.byte()) % CATEGORIES.len()];
    let stream = StreamId::new(category, "1");
    let mut entity = Entity::of(&stream);
    if let Some(state) = decode_snapshot(&stream, FOLD_VERSION, input.0) {
        let bytes = encode_snapshot(&state);
        assert_eq!(decode_snapshot(&stream, FOLD_VERSION, &bytes).as_ref(), Some(&state));
        entity = Some(state);
    }
    for _ in 0..4 {
        let (kind, version, length) = (input.byte(), input.byte(), usize::from(input.byte()));
        let kind = KINDS[usize::from(kind) % KINDS.len()];
        let (payload, rest) = input.0.split_at(length.min(input.0.len()));
        input.0 = rest;
        let Ok(event) = decode(&stream, kind, version.into(), payload) else { continue };
        let stored = encode(&stream, &event);
        assert_eq!((stored.kind, stored.schema_version >= version.into()), (kind, true));
        assert_eq!(decode(&stream, stored.kind, stored.schema_version, &stored.payload).as_ref(), Ok(&event));
        let entity = entity.as_mut().expect("a known category, since an event of it was read");
        entity.evolve(&event).expect("an event of the stream's kind");
    }
}

/// Messages on the bus: what is no event is refused, and an event is the same after another way.
pub fn messages(data: &[u8]) {
    let Ok(message) = wire::Event::decode(data) else { return };
    let Ok(event) = souk_bus::from_wire(message) else { return };
    let again = wire::Event::decode(souk_bus::to_wire(&event).encode_to_vec().as_slice()).expect("it was just encoded");
    assert_eq!(souk_bus::from_wire(again).as_ref(), Ok(&event));
    let _ = souk_event_sourcing::LogHash::EMPTY.after(&event);
}
