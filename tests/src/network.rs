use anyhow::Result;
use souk_devstack::{DatabaseUrl, FaultProxy, Stack};

/// The ways of the services to Postgres and to NATS, which can be slow, stall and break.
#[derive(Debug)]
pub struct Network {
    pub postgres: FaultProxy,
    pub nats: FaultProxy,
}

impl Network {
    /// Leads the services that start from now on through proxies.
    ///
    /// # Errors
    /// When there is no port for them.
    pub async fn before(stack: &mut Stack) -> Result<Self> {
        let postgres = FaultProxy::start(format!("127.0.0.1:{}", stack.postgres.port())).await?;
        let nats = FaultProxy::start(format!("127.0.0.1:{}", stack.nats.port())).await?;
        let through = |url: &str, port: u16, proxy: &FaultProxy| url.replace(&format!(":{port}"), &format!(":{}", proxy.address().port()));
        let nats_url = through(&stack.nats.url(), stack.nats.port(), &nats);
        for (side, databases) in [("write", stack.write_databases()), ("read", stack.read_databases())] {
            let port = stack.postgres.port();
            let databases = databases.into_iter().map(|database| DatabaseUrl { url: through(&database.url, port, &postgres), ..database });
            stack.lead_to(side, databases)?;
        }
        stack.set("nats.url", nats_url)?;
        Ok(Self { postgres, nats })
    }
}
