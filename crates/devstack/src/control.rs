//! The socket by which other processes see and change the links between regions. Only the user who started them may.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use crate::folder::TemporaryFolder;
use crate::regions::{Link, LinkState, Links};

/// Longer orders are none.
const MAX_BYTES: u64 = 64 << 10;
/// Whoever says nothing for so long is not listened to any more.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a process asks for: one line of JSON, answered by one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum LinkOrder {
    /// How all links are.
    Show,
    /// A change of one link, or of two.
    Change(LinkChange),
}

/// A change of a link. What is not named stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkChange {
    /// Whose services call.
    pub from: String,
    /// Whose services are called.
    pub to: String,
    /// Only this way, not the one back.
    pub one_way: bool,
    /// All faults end first, latency included.
    pub up: bool,
    /// Delay of each direction.
    pub latency_ms: Option<u64>,
    /// Connections are reset and refused.
    pub down: bool,
}

/// How all links are after an order, or why it was refused.
type Answer = Result<Vec<LinkState>, String>;

/// Serves orders until it is dropped.
#[derive(Debug)]
pub(crate) struct Control {
    socket: PathBuf,
    serving: JoinHandle<()>,
    /// A short place: the path of a socket has at most a hundred characters.
    _folder: TemporaryFolder,
}

impl Control {
    pub async fn serve(links: Links) -> Result<Self> {
        let folder = TemporaryFolder::create()?;
        let socket = folder.path().join("control");
        let listener = UnixListener::bind(&socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
        fs::set_permissions(&socket, Permissions::from_mode(0o600))?;
        let serving = tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((connection, _)) => drop(tokio::spawn(tokio::time::timeout(PATIENCE, answer(connection, links.clone())))),
                    Err(error) => {
                        tracing::debug!(%error, "an order was not accepted");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        });
        Ok(Self { socket, serving, _folder: folder })
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn answer(mut connection: UnixStream, links: Links) -> Result<()> {
    let (from, mut to) = connection.split();
    let mut line = String::new();
    BufReader::new(from.take(MAX_BYTES)).read_line(&mut line).await?;
    let answer: Answer = match serde_json::from_str(&line) {
        Ok(order) => carry_out(&links, order).await.map_err(|error| format!("{error:#}")),
        Err(error) => Err(format!("this is no order: {error}")),
    };
    to.write_all(format!("{}\n", serde_json::to_string(&answer)?).as_bytes()).await?;
    Ok(to.shutdown().await?)
}

async fn carry_out(links: &Links, order: LinkOrder) -> Result<Vec<LinkState>> {
    if let LinkOrder::Change(change) = order {
        let LinkChange { from, to, .. } = &change;
        let [there, back] = links.between(from, to)?;
        apply(&there, &change).await?;
        if !change.one_way {
            apply(&back, &change).await?;
        }
    }
    Ok(links.states().await)
}

async fn apply(link: &Link, change: &LinkChange) -> Result<()> {
    if change.up {
        link.heal().await?;
    }
    if let Some(latency) = change.latency_ms {
        link.set_latency(Duration::from_millis(latency)).await;
    }
    if change.down {
        link.cut().await;
    }
    Ok(())
}

/// Gives an order to the process that holds the links; how all of them are then.
///
/// # Errors
/// If nobody answers at this socket, or the order is refused.
pub async fn order(socket: &Path, order: &LinkOrder) -> Result<Vec<LinkState>> {
    let talk = async {
        let mut connection = UnixStream::connect(socket).await?;
        let (from, mut to) = connection.split();
        to.write_all(format!("{}\n", serde_json::to_string(order)?).as_bytes()).await?;
        let mut line = String::new();
        BufReader::new(from).read_line(&mut line).await?;
        anyhow::Ok(serde_json::from_str::<Answer>(&line)?)
    };
    let answer = tokio::time::timeout(PATIENCE, talk).await.context("no answer in time").and_then(|answer| answer);
    match answer.with_context(|| format!("the process that holds the links does not answer at {}", socket.display()))? {
        Ok(states) => Ok(states),
        Err(refused) => bail!("{refused}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn served() -> (Control, Links) {
        let links = Links::default();
        for (from, to) in [("eu", "us"), ("us", "eu")] {
            links.add(Link::lay(from, to, []).await.unwrap());
        }
        (Control::serve(links.clone()).await.unwrap(), links)
    }

    fn change(from: &str, to: &str) -> LinkChange {
        LinkChange { from: from.into(), to: to.into(), ..LinkChange::default() }
    }

    #[tokio::test]
    async fn links_are_changed_both_ways_unless_one_was_asked_for() {
        let (control, links) = served().await;
        let slow = LinkChange { latency_ms: Some(80), ..change("eu", "us") };
        let states = order(control.socket(), &LinkOrder::Change(slow)).await.unwrap();
        assert!(states.len() == 2 && states.iter().all(|state| state.latency_ms == 80 && !state.down), "{states:?}");
        let cut = LinkChange { one_way: true, down: true, ..change("us", "eu") };
        order(control.socket(), &LinkOrder::Change(cut)).await.unwrap();
        let down = |state: &LinkState| (state.from.clone(), state.down, state.latency_ms);
        let shown = order(control.socket(), &LinkOrder::Show).await.unwrap();
        assert_eq!(shown.iter().map(down).collect::<Vec<_>>(), [("eu".into(), false, 80), ("us".into(), true, 80)]);
        let healed = LinkChange { up: true, ..change("eu", "us") };
        order(control.socket(), &LinkOrder::Change(healed)).await.unwrap();
        assert!(links.states().await.iter().all(|state| !state.down && state.latency_ms == 0));
    }

    #[tokio::test]
    async fn what_is_refused_changes_nothing_and_is_explained() {
        let (control, links) = served().await;
        let refused = order(control.socket(), &LinkOrder::Change(change("eu", "ap"))).await.unwrap_err().to_string();
        assert_eq!(refused, "there is no region \"ap\"; there is eu, us");
        let mut connection = UnixStream::connect(control.socket()).await.unwrap();
        connection.write_all(b"{\"tear\":{}}\n").await.unwrap();
        let mut said = String::new();
        connection.read_to_string(&mut said).await.unwrap();
        assert!(said.contains("this is no order"), "{said}");
        assert!(links.states().await.iter().all(|state| !state.down));
    }

    #[tokio::test]
    async fn nobody_answers_for_one_that_is_gone() {
        let (control, _) = served().await;
        let socket = control.socket().to_owned();
        drop(control);
        let refused = order(&socket, &LinkOrder::Show).await.unwrap_err().to_string();
        assert!(refused.contains("does not answer"), "{refused}");
    }
}
