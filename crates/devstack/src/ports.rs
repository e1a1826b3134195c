//! Free TCP ports on the loopback interface.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::{LazyLock, Mutex};
use std::{fs, io};

use anyhow::{Result, bail};
use tokio::net::TcpSocket;

/// The numbers searched. They end below what Linux and macOS give to outgoing connections: in that range a client that keeps
/// reconnecting to a killed server can be given the server's own port, and the server cannot come back to it.
const LOWEST: u16 = 20_000;
const HIGHEST: u16 = 32_000;

/// From one server of a kind to the next, where the first one's port is fixed.
const STEP: u16 = 100;

static HANDED_OUT: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);

/// Which port a server takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Port {
    /// Any free one; the server keeps it over restarts.
    #[default]
    Free,
    /// This one; starting fails if it is taken.
    Fixed(u16),
}

impl Port {
    /// The number to use: the fixed one, or a free one found now.
    ///
    /// # Errors
    /// If no free port is found.
    pub fn choose(self) -> Result<u16> {
        match self {
            Port::Fixed(port) => {
                HANDED_OUT.lock().expect("no holder of this lock panics").insert(port);
                Ok(port)
            }
            Port::Free => free_port(),
        }
    }

    /// The number for the `index`th (from 1) of several servers of a kind: the first has the one that was chosen, the others one a hundred
    /// further each, or any other if that is taken.
    ///
    /// # Errors
    /// If no free port is found.
    pub(crate) fn choose_for(self, index: u16) -> Result<u16> {
        match self {
            Port::Fixed(first) if index > 1 => {
                let port = STEP.checked_mul(index - 1).and_then(|distance| first.checked_add(distance));
                port.filter(|port| claim(*port)).map_or_else(free_port, Ok)
            }
            first => first.choose(),
        }
    }
}

/// Whether this port may be taken where any would do: nothing listens on it, and this process has not been given it before.
fn claim(port: u16) -> bool {
    let mut handed_out = HANDED_OUT.lock().expect("no holder of this lock panics");
    is_free(port) && handed_out.insert(port)
}

/// A port nothing listens on and this process has not been given before.
///
/// # Errors
/// If no port between 20,000 and 32,000 is free.
pub fn free_port() -> Result<u16> {
    let mut handed_out = HANDED_OUT.lock().expect("no holder of this lock panics");
    let range = HIGHEST.min(first_outgoing_port()).max(LOWEST + 1_000) - LOWEST;
    // Processes started together begin at different places.
    let start = (uuid::Uuid::new_v4().as_u128() % u128::from(range)) as u16;
    let candidates = (0..range).map(|step| LOWEST + (start + step) % range);
    for port in candidates {
        if !handed_out.contains(&port) && is_free(port) {
            handed_out.insert(port);
            return Ok(port);
        }
    }
    bail!("no free port between {LOWEST} and {HIGHEST}")
}

/// Whether a server could listen on this port of 127.0.0.1 now.
pub fn is_free(port: u16) -> bool {
    probe(port).is_ok()
}

/// A socket on this port, unless another program listens there. It does not listen itself: a child process that another thread starts
/// now has a copy of it until it becomes another program, and so little does not keep a server off the port.
fn probe(port: u16) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv4Addr::LOCALHOST, port).into())?;
    Ok(socket)
}

fn first_outgoing_port() -> u16 {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    range.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(32_768)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_server_can_listen_where_it_was_just_looked() {
        let port = free_port().unwrap();
        let looked = probe(port).unwrap();
        let _server = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        drop(looked);
        assert!(!is_free(port));
    }

    #[test]
    fn a_port_is_handed_out_once() {
        let ports: HashSet<u16> = (0..20).map(|_| free_port().unwrap()).collect();
        assert_eq!(ports.len(), 20);
    }

    #[test]
    fn further_servers_are_a_hundred_ports_on_or_anywhere() {
        let base = free_port().unwrap();
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, base + STEP));
        assert_ne!(Port::Fixed(base).choose_for(2).unwrap(), base + STEP, "it is taken, by this test or by another program");
        drop(taken);
        assert_eq!(Port::Fixed(base).choose_for(1).unwrap(), base);
    }

    #[test]
    fn a_port_somebody_listens_on_is_not_free() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert!(!is_free(taken.local_addr().unwrap().port()));
    }
}
