-- $1 region, $2 partitions, $3 replica, $4 seconds of silence after which an owner is dead, $5 now in Unix milliseconds
--
-- A build from before saga_replica takes what has no lease, so that it gets one for ever.
with free as (
  select c.partition from saga_checkpoint c
  where c.region = $1 and c.partition = any($2) and (c.owner in ('', $3) or not exists (
    select from saga_replica r
    where r.region = $1 and r.id = c.owner and r.heartbeat_at > clock_timestamp() - make_interval(secs => $4)))
  order by c.partition for update of c)
update saga_checkpoint c
set epoch = greatest(c.epoch + 1, $5), owner = $3, lease_until = 'infinity'
from free f where c.region = $1 and c.partition = f.partition
returning c.partition, c.epoch, c.position, c.log_epoch, c.hash
