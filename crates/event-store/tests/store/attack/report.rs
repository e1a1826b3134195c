use std::{fmt, str::FromStr};

use uuid::Uuid;

/// What a worker process tells the test, one line each on its standard output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// A command was answered.
    Ack(Ack),
    /// A command that was only ever sent with a wrong version: it must not have left a trace.
    Void(Uuid),
    /// An earlier command was sent again and got its earlier reply.
    Repeated,
    /// A log was taken over.
    Took,
    /// An append was dropped mid-statement by its caller.
    Abandoned,
    /// The connection was cut while an append was under way.
    Cut,
    /// An append ended without a known outcome.
    Unknown,
    /// A log's part was refused because the head was another's.
    Fenced,
    /// Something that must not happen.
    Wrong(String),
}

/// An answered command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    pub partition: u16,
    pub request: Uuid,
    /// The stream under which the ledger remembers the command.
    pub stream: String,
    pub reply: Reply,
}

/// What a command is answered with; stored in the ledger in the same words, but for `Seen`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// So many events from this position on.
    Wrote { first: u64, events: u64 },
    /// No event: the stream had this version when the log ended at this position. Remembered.
    Refused { version: u64, position: u64 },
    /// The same, not remembered.
    Seen { version: u64, position: u64 },
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ack(Ack { partition, request, stream, reply }) => write!(f, "ack {partition} {request} {stream} {reply}"),
            Self::Void(request) => write!(f, "void {request}"),
            Self::Repeated => f.write_str("repeated"),
            Self::Took => f.write_str("took"),
            Self::Abandoned => f.write_str("abandoned"),
            Self::Cut => f.write_str("cut"),
            Self::Unknown => f.write_str("unknown"),
            Self::Fenced => f.write_str("fenced"),
            Self::Wrong(what) => write!(f, "wrong {}", what.replace('\n', " ")),
        }
    }
}

impl FromStr for Report {
    type Err = ();

    fn from_str(line: &str) -> Result<Self, ()> {
        let (what, rest) = line.split_once(' ').unwrap_or((line, ""));
        Ok(match what {
            "ack" => {
                let mut words = rest.splitn(4, ' ');
                let mut word = || words.next().ok_or(());
                let (partition, request, stream, reply) = (word()?, word()?, word()?, word()?);
                Self::Ack(Ack {
                    partition: partition.parse().map_err(drop)?,
                    request: request.parse().map_err(drop)?,
                    stream: stream.to_owned(),
                    reply: reply.parse()?,
                })
            }
            "void" => Self::Void(rest.parse().map_err(drop)?),
            "repeated" => Self::Repeated,
            "took" => Self::Took,
            "abandoned" => Self::Abandoned,
            "cut" => Self::Cut,
            "unknown" => Self::Unknown,
            "fenced" => Self::Fenced,
            "wrong" => Self::Wrong(rest.to_owned()),
            _ => return Err(()),
        })
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wrote { first, events } => write!(f, "wrote {first} {events}"),
            Self::Refused { version, position } => write!(f, "refused {version} {position}"),
            Self::Seen { version, position } => write!(f, "seen {version} {position}"),
        }
    }
}

impl FromStr for Reply {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let words: Vec<_> = text.split(' ').collect();
        let [what, a, b] = words[..] else { return Err(()) };
        let (a, b) = (a.parse().map_err(drop)?, b.parse().map_err(drop)?);
        match what {
            "wrote" => Ok(Self::Wrote { first: a, events: b }),
            "refused" => Ok(Self::Refused { version: a, position: b }),
            "seen" => Ok(Self::Seen { version: a, position: b }),
            _ => Err(()),
        }
    }
}
