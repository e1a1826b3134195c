use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use souk_client::{Command, Query, Session};
use uuid::Uuid;

use crate::paint::{bold, dim, green, say};

/// Where the story plays: sends commands, reads back, tells it, and remembers when what happened.
pub struct Stage {
    /// Sends commands.
    pub session: Session,
    /// Reads, maybe in another region, with nothing but the tokens of the commands.
    reader: Session,
    pub moments: Vec<Moment>,
    chapters: u32,
}

/// One command of the story.
pub struct Moment {
    pub request_id: String,
    pub sent: SystemTime,
    pub replied: SystemTime,
    /// When a read with the command's token came back.
    pub visible: SystemTime,
}

impl Stage {
    pub fn new(session: Session, reader: Session) -> Self {
        Self { session, reader, moments: Vec::new(), chapters: 0 }
    }

    /// Who reads, with the tokens of all commands so far.
    pub fn reader(&self) -> &Session {
        self.reader.merge_token(&self.session.token());
        &self.reader
    }

    pub fn chapter(&mut self, title: &str) {
        self.chapters += 1;
        say(format_args!("\n{}", bold(format!("{}. {title}", self.chapters))));
    }

    pub fn note(&self, line: &str) {
        say(format_args!(" {:46}{}", "", dim(line)));
    }

    /// Sends a command and reads its effect back, which `check` must find in the reply.
    pub async fn act<C: Command, Q: Query>(
        &mut self,
        what: &str,
        mut command: C,
        query: Q,
        check: impl Fn(&Q::Reply) -> Result<String>,
    ) -> Result<C::Reply> {
        if command.request_id().is_empty() {
            *command.request_id() = Uuid::now_v7().to_string();
        }
        let request_id = command.request_id().clone();
        let (sent, began) = (SystemTime::now(), Instant::now());
        let reply = self.session.command(command).await.with_context(|| what.to_owned())?;
        let (replied, answered) = (SystemTime::now(), began.elapsed());
        let read = self.reader().query(query).await.with_context(|| format!("{what}, read back"))?;
        let (visible, seen) = (SystemTime::now(), began.elapsed());
        let line = check(&read).with_context(|| format!("{what}: the read does not show it"))?;
        say(format_args!(" {} {what:<26}{}   {line}", green("✓"), dim(format!("{:>7} {:>7}", shown(answered), shown(seen)))));
        self.moments.push(Moment { request_id, sent, replied, visible });
        Ok(reply)
    }

    /// Reads, and gives the line of `check`.
    pub async fn see<Q: Query>(&self, query: Q, check: impl Fn(&Q::Reply) -> Result<String>) -> Result<String> {
        check(&self.reader().query(query).await?)
    }

    /// Reads until `check` is content: for what the process manager does in its own time.
    pub async fn await_that<Q: Query>(&self, patience: Duration, query: Q, check: impl Fn(&Q::Reply) -> Result<String>) -> Result<String> {
        let until = Instant::now() + patience;
        loop {
            match self.see(query.clone(), &check).await {
                Err(error) if Instant::now() > until => return Err(error.context("still not so in the end")),
                // Not a race but a poll: the read side has no event for "stock was shipped" to wait on.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                found => return found,
            }
        }
    }
}

fn shown(duration: Duration) -> String {
    format!("{:.1}", duration.as_secs_f64() * 1e3)
}
