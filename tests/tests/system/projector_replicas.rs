use std::time::Duration;

use anyhow::{Result, ensure};
use souk_devstack::Service;
use souk_tests::until;

use super::{
    command_replicas::{owned, shared_by},
    faults::loaded_system,
};

const PATIENCE: Duration = Duration::from_secs(60);
const FIRST: (Service, u16) = (Service::Projector, 1);
const SECOND: (Service, u16) = (Service::Projector, 2);

#[tokio::test(flavor = "multi_thread")]
async fn projectors_come_go_die_and_pause_and_the_views_are_the_fold() -> Result<()> {
    let (mut system, load) = loaded_system(|options| {
        options.replicas(Service::Projector, 2);
    })
    .await?;
    shared_by(&system, Service::Projector, 2).await?;
    load.progress("shared by two").await?;
    for replica in [FIRST, SECOND] {
        system.stop(replica).await?;
        load.progress(&format!("{} stopped", replica.1)).await?;
        system.start_again(replica).await?;
        shared_by(&system, Service::Projector, 2).await?;
    }
    let third = system.add_replica(Service::Projector).await?;
    shared_by(&system, Service::Projector, 3).await?;
    load.progress("scaled out to three").await?;
    system.remove_replica(third).await?;
    shared_by(&system, Service::Projector, 2).await?;
    load.progress("scaled in to two").await?;
    for replica in [FIRST, SECOND] {
        system.kill(replica).await?;
        load.progress(&format!("{} killed", replica.1)).await?;
        system.start_again(replica).await?;
        shared_by(&system, Service::Projector, 2).await?;

        // Past its lease: the other takes over, and what the paused one still writes is fenced when it wakes.
        system.pause(replica)?;
        load.progress(&format!("{} paused", replica.1)).await?;
        until("the other owns all", PATIENCE, || async {
            Ok(owned(&system, Service::Projector).await?.iter().any(|(_, count)| *count == 64).then_some(()))
        })
        .await?;
        system.resume(replica)?;
        shared_by(&system, Service::Projector, 2).await?;
        load.progress(&format!("{} resumed", replica.1)).await?;
    }
    let errors = load.never_answered();
    load.settle(&system).await?;
    ensure!(errors == 0, "{errors} callers were not answered in a minute");
    Ok(())
}
