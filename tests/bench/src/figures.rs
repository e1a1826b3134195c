//! What the parts of the system say of themselves.

use anyhow::Result;
use souk_devstack::{Replica, Service};
use souk_proto::internal::v1::{GetStatusRequest, GetStatusResponse, admin_service_client::AdminServiceClient};
use souk_tests::{http_get, until};

use crate::stage::{PATIENCE, Stage, WRITTEN, sum};

impl Stage {
    /// A metric of a replica (the first of a service, if only that is named), all its series added up.
    ///
    /// # Errors
    /// When the replica does not answer.
    pub async fn metric(&self, replica: impl Into<Replica>, name: &str) -> Result<f64> {
        let text = http_get(self.system.stack.ports_of(replica)?.ops, "/metrics").await?;
        let value = |line: &str| -> Option<f64> {
            let (series, value) = line.rsplit_once(' ')?;
            (series.split('{').next() == Some(name)).then(|| value.parse().ok())?
        };
        Ok(text.lines().filter_map(value).sum())
    }

    async fn query_status(&self) -> Result<GetStatusResponse> {
        let mut admin = AdminServiceClient::connect(self.system.stack.endpoint("query_internal")).await?;
        Ok(admin.get_status(GetStatusRequest {}).await?.into_inner())
    }

    /// Waits until the query service has heard the change feed of every log, and how far each is.
    ///
    /// # Errors
    /// When it does not.
    pub async fn feed_heard(&self) -> Result<()> {
        let written = sum(&self.system.write_pools().await?, WRITTEN).await?;
        until("the query service has heard of every log", PATIENCE, || async {
            let status = self.query_status().await?;
            let heard = status.figures.keys().filter(|name| name.starts_with("feed_age_seconds.")).count();
            let known: u64 = status.partitions.iter().map(|partition| partition.position).sum();
            Ok((heard == status.partitions.len() && heard > 0 && known as i64 >= written).then_some(()))
        })
        .await
    }

    /// How often rows of products were looked up in the read databases, as these count it. Exact once nobody `reading` under
    /// that name is connected: a connection tells what it did at its end, if not before.
    ///
    /// # Errors
    /// When they do not let go of their connections.
    pub async fn lookups(&self, reading: &str) -> Result<i64> {
        const READING: &str = "select count(*) from pg_stat_activity where application_name = $1";
        const LOOKUPS: &str = "select idx_scan from pg_stat_user_indexes where indexrelname = 'product_view_pkey'";
        let pools = self.system.read_pools().await?;
        for pool in &pools {
            until("connections to the read databases are closed", PATIENCE, || async {
                let left: i64 = sqlx::query_scalar(READING).bind(reading).fetch_one(pool).await?;
                Ok((left == 0).then_some(()))
            })
            .await?;
        }
        sum(&pools, LOOKUPS).await
    }

    /// Waits until JetStream has every event.
    ///
    /// # Errors
    /// When the relays do not come on.
    pub async fn relayed(&self) -> Result<()> {
        self.until_none(Service::Command, "souk_relay_lag_events").await
    }

    /// Waits until a gauge of a service is 0.
    ///
    /// # Errors
    /// When it does not come to that.
    pub async fn until_none(&self, service: Service, gauge: &str) -> Result<()> {
        until(gauge, PATIENCE, || async { Ok((self.metric(service, gauge).await? == 0.0).then_some(())) }).await
    }
}
