//! The port flags of `souk up`.

use anyhow::{Result, bail};
use souk_devstack::{Port, StackPorts, is_free};

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Ports on 127.0.0.1, of further regions a thousand above")]
pub struct Flags {
    /// Public gRPC of the command service [default: 50051]
    #[arg(long, value_name = "PORT")]
    command_port: Option<u16>,
    /// Public gRPC of the query service [default: 50052]
    #[arg(long, value_name = "PORT")]
    query_port: Option<u16>,
    /// Internal gRPC of the command service [default: 50061]
    #[arg(long, value_name = "PORT")]
    command_internal_port: Option<u16>,
    /// Internal gRPC of the query service [default: 50062]
    #[arg(long, value_name = "PORT")]
    query_internal_port: Option<u16>,
    /// Internal gRPC of the projector [default: 50063]
    #[arg(long, value_name = "PORT")]
    projector_internal_port: Option<u16>,
    /// Internal gRPC of the process manager [default: 50064]
    #[arg(long, value_name = "PORT")]
    saga_internal_port: Option<u16>,
    /// Internal gRPC of the replicator, with several regions [default: 50065]
    #[arg(long, value_name = "PORT")]
    replicator_internal_port: Option<u16>,
    /// HTTP for operators: command service, or all in one process [default: 50071]
    #[arg(long, value_name = "PORT")]
    command_ops_port: Option<u16>,
    /// HTTP for operators: query service [default: 50072]
    #[arg(long, value_name = "PORT")]
    query_ops_port: Option<u16>,
    /// HTTP for operators: projector [default: 50073]
    #[arg(long, value_name = "PORT")]
    projector_ops_port: Option<u16>,
    /// HTTP for operators: process manager [default: 50074]
    #[arg(long, value_name = "PORT")]
    saga_ops_port: Option<u16>,
    /// HTTP for operators: replicator, with several regions [default: 50075]
    #[arg(long, value_name = "PORT")]
    replicator_ops_port: Option<u16>,
    /// Postgres [default: 50081]
    #[arg(long, value_name = "PORT")]
    postgres_port: Option<u16>,
    /// NATS [default: 50091]
    #[arg(long, value_name = "PORT")]
    nats_port: Option<u16>,
    /// Take any free port where none is given
    #[arg(long)]
    free_ports: bool,
}

/// One port: its flag, its number, and whether it is listened on.
struct Wanted {
    flag: &'static str,
    port: Port,
    used: bool,
}

/// From a port of one region to that of the next.
const REGION_STEP: u16 = 1000;

impl Flags {
    /// The ports to use, all of them free: of one region that knows of no other, or of each of so many.
    ///
    /// # Errors
    /// One line that names every port that is taken with its flag.
    pub fn check(&self, processes: bool, regions: usize) -> Result<Vec<StackPorts>> {
        let all: Vec<_> = (0..regions.max(1)).map(|index| self.of_region(processes, regions > 0, index)).collect();
        refuse_conflicts(all.iter().flatten())?;
        Ok(all.into_iter().map(as_ports).collect())
    }

    fn of_region(&self, processes: bool, replicates: bool, index: usize) -> [Wanted; 14] {
        let free = self.free_ports;
        let above = |port: u16| {
            // Beyond the last port any free one will do.
            let distance = u16::try_from(index).ok().and_then(|index| index.checked_mul(REGION_STEP));
            distance.and_then(|distance| port.checked_add(distance)).map_or(Port::Free, Port::Fixed)
        };
        let want = |flag, given: Option<u16>, default, used| Wanted {
            flag,
            port: match given {
                Some(0) => Port::Free,
                Some(port) => above(port),
                None if free => Port::Free,
                None => above(default),
            },
            used,
        };
        [
            want("--command-port", self.command_port, 50051, true),
            want("--query-port", self.query_port, 50052, true),
            want("--command-internal-port", self.command_internal_port, 50061, true),
            want("--query-internal-port", self.query_internal_port, 50062, true),
            want("--projector-internal-port", self.projector_internal_port, 50063, true),
            want("--saga-internal-port", self.saga_internal_port, 50064, true),
            want("--replicator-internal-port", self.replicator_internal_port, 50065, replicates),
            want("--command-ops-port", self.command_ops_port, 50071, true),
            want("--query-ops-port", self.query_ops_port, 50072, processes),
            want("--projector-ops-port", self.projector_ops_port, 50073, processes),
            want("--saga-ops-port", self.saga_ops_port, 50074, processes),
            want("--replicator-ops-port", self.replicator_ops_port, 50075, replicates),
            want("--postgres-port", self.postgres_port, 50081, true),
            want("--nats-port", self.nats_port, 50091, true),
        ]
    }
}

fn as_ports(wanted: [Wanted; 14]) -> StackPorts {
    let [command, query, command_internal, query_internal, projector_internal, saga_internal, replicator_internal, rest @ ..] =
        wanted.map(|wanted| wanted.port);
    let [command_ops, query_ops, projector_ops, saga_ops, replicator_ops, postgres, nats] = rest;
    StackPorts {
        command,
        query,
        command_internal,
        query_internal,
        projector_internal,
        saga_internal,
        replicator_internal,
        command_ops,
        query_ops,
        projector_ops,
        saga_ops,
        replicator_ops,
        postgres,
        nats,
    }
}

fn refuse_conflicts<'a>(ports: impl IntoIterator<Item = &'a Wanted>) -> Result<()> {
    let mut complaints = Vec::new();
    let mut seen: Vec<(u16, &str)> = Vec::new();
    for Wanted { flag, port, used } in ports {
        let Port::Fixed(port) = *port else { continue };
        if !used {
            continue;
        }
        if let Some((_, other)) = seen.iter().find(|(taken, _)| *taken == port) {
            complaints.push(format!("port {port} is given to {other} and {flag}"));
        } else if !is_free(port) {
            complaints.push(format!("port {port} is taken, choose another with {flag}"));
        }
        seen.push((port, flag));
    }
    if complaints.is_empty() { Ok(()) } else { bail!("{}", complaints.join("; ")) }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        ports: Flags,
    }

    fn check(flags: &[&str], processes: bool) -> Result<StackPorts> {
        let flags = ["up", "--free-ports"].iter().chain(flags);
        Ok(Program::parse_from(flags).ports.check(processes, 0)?.remove(0))
    }

    #[test]
    fn every_taken_port_is_named_with_its_flag() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port().to_string();
        let refused = check(&["--query-port", &port, "--nats-port", &port], false).unwrap_err().to_string();
        let wanted =
            format!("port {port} is taken, choose another with --query-port; port {port} is given to --query-port and --nats-port");
        assert_eq!(refused, wanted);
    }

    #[test]
    fn a_port_that_will_not_be_used_may_be_taken() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port().to_string();
        assert!(check(&["--saga-ops-port", &port], false).is_ok());
        assert!(check(&["--saga-ops-port", &port], true).is_err());
    }

    #[test]
    fn a_port_that_is_given_is_the_one_used() {
        let port = souk_devstack::free_port().unwrap();
        let ports = check(&["--command-port", &port.to_string(), "--query-port", "0"], false).unwrap();
        assert_eq!((ports.command, ports.query), (Port::Fixed(port), Port::Free));
    }
    #[test]
    fn further_regions_are_a_thousand_ports_on() {
        let base = souk_devstack::free_port().unwrap();
        let flags = Program::parse_from(["up", "--free-ports", "--command-port", &base.to_string()]).ports;
        let regions = flags.check(true, 3).unwrap();
        let ports: Vec<_> = regions.iter().map(|ports| ports.command).collect();
        assert_eq!(ports, [base, base + 1000, base + 2000].map(Port::Fixed));
        assert!(regions.iter().all(|ports| ports.nats == Port::Free));
    }
}
