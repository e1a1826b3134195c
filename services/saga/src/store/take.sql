-- $1 region, $2 partitions, $3 owner, $4 lease in seconds, $5 now in Unix milliseconds, $6 also from a living owner
with free as (
  select c.partition from saga_checkpoint c
  where c.region = $1 and c.partition = any($2) and ($6 or c.owner = $3 or c.lease_until < clock_timestamp())
  order by c.partition for update of c)
update saga_checkpoint c
set epoch = greatest(c.epoch + 1, $5), owner = $3, lease_until = clock_timestamp() + make_interval(secs => $4)
from free f where c.region = $1 and c.partition = f.partition
returning c.partition, c.epoch, c.position, c.log_epoch, c.hash
