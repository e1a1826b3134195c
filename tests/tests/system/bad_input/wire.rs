//! Below the messages: bodies that are none, methods that are not there, metadata that makes no sense.

use std::collections::BTreeSet;

use anyhow::Result;
use tonic::{
    Code::{InvalidArgument as Bad, Unimplemented},
    Request, Status,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::Endpoint,
};
use tonic_prost::ProstCodec;

use super::{Refusal, Scene};

const CREATE: &str = "souk.catalog.v1.CommandService/CreateProduct";
const GET: &str = "souk.catalog.v1.QueryService/GetProduct";
const LIST: &str = "souk.catalog.v1.QueryService/ListProducts";

/// Sends raw bodies to the doors of a system.
struct Wire<'a> {
    scene: &'a Scene,
    cases: usize,
}

impl Wire<'_> {
    /// Sends a message whose first field holds these bytes.
    async fn send(&mut self, door: &str, method: &str, field: &[u8], metadata: &[(&'static str, &str)]) -> Result<Refusal> {
        self.cases += 1;
        let channel = Endpoint::from_shared(self.scene.system.stack.endpoint(door))?.connect().await?;
        let mut request = Request::new(field.to_vec());
        for (key, value) in metadata {
            request.metadata_mut().insert(*key, value.parse()?);
        }
        let mut grpc = Grpc::new(channel);
        grpc.ready().await?;
        let outcome = grpc.unary(request, PathAndQuery::try_from(format!("/{method}"))?, ProstCodec::<Vec<u8>, Vec<u8>>::default()).await;
        let status = outcome.err().unwrap_or_else(|| Status::ok("accepted"));
        Ok(Refusal { what: format!("{method} at {door}, first field {:?}", &field[..field.len().min(8)]), status })
    }
}

/// Returns the number of cases.
pub async fn garbage(scene: &Scene, public: &BTreeSet<String>, internal: &BTreeSet<String>) -> Result<usize> {
    let mut wire = Wire { scene, cases: 0 };
    for method in public {
        let (door, other) = if method.contains(".CommandService/") { ("command", "query") } else { ("query", "command") };
        // A text that is no UTF-8, where the first field is no number.
        wire.send(door, method, &[0xff], &[]).await?.says(Bad, "MALFORMED_REQUEST")?;
        wire.send(other, method, b"p-1", &[]).await?.says(Unimplemented, "METHOD_NOT_FOUND")?;
    }
    for method in internal {
        let door = if method.contains(".ParkedEntityService/") { "projector_internal" } else { "command_internal" };
        let has_fields = !["/GetStatus", "/Nudge", "/GetTopology"].iter().any(|without| method.ends_with(without));
        if has_fields {
            wire.send(door, method, &[0xff], &[]).await?.says(Bad, "MALFORMED_REQUEST")?;
        }
        for public_door in ["command", "query"] {
            wire.send(public_door, method, b"p-1", &[]).await?.says(Unimplemented, "METHOD_NOT_FOUND")?;
        }
    }
    for (door, method) in [("command", CREATE), ("query", GET), ("query", LIST)] {
        wire.send(door, method, &vec![b'x'; 2 << 20], &[]).await?.says(Bad, "REQUEST_TOO_LARGE")?;
        wire.send(door, method, b"p-1", &[("grpc-timeout", "soon")]).await?.says(Bad, "INVALID_TIMEOUT")?;
        wire.send(door, "souk.catalog.v1.QueryService/DropProducts", b"p-1", &[]).await?.says(Unimplemented, "METHOD_NOT_FOUND")?;
    }
    wire.send("command", CREATE, b"x", &[("souk-caller", &"x".repeat(129))]).await?.says(Bad, "INVALID_CALLER")?;
    wire.send("command", CREATE, b"x", &[("souk-caller", "")]).await?.says(Bad, "INVALID_CALLER")?;
    wire.send("query", GET, b"p-1", &[("souk-token", "AAAA")]).await?.tells(Bad, "INVALID_TOKEN", &["souk-token"])?;
    Ok(wire.cases)
}
