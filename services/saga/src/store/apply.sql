-- $1 region; checkpoints $2..$7: partition, epoch, position before, position after, epoch and hash of the event there
-- orders kept $8..$11: partition, order, schema version, placed         orders dropped $12..$13: partition, order
-- timers set $14..$21: partition, kind, subject, due, position, cause, attempt, traceparent
-- timers cleared $22..$24: partition, kind, subject
-- steps due $25..$34: partition, position, kind, subject, cause, time, attempt, traceparent, schema version, placed
-- steps done $35..$37: partition, position, kind       steps renewed $38..$42: partition, position, kind, time, attempt
--
-- A log's part is written only if its checkpoint is the one this process holds, and only if the event it moves to stands
-- in the log with that running hash: the bus alone decides nothing (law 1). All writes join `good`. The lateral with a
-- limit keeps an index probe whatever the planner believes.
with good as materialized (
  select c.partition, i.was, i.position, i.log_epoch, i.hash
  from unnest($2::int[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bytea[]) i(partition, epoch, was, position, log_epoch, hash)
  join saga_checkpoint c on c.region = $1 and c.partition = i.partition and c.epoch = i.epoch and c.position = i.was
  left join lateral (
    select e.hash from event e where e.region = $1 and e.partition = i.partition and e.position = i.position limit 1) e on true
  where i.position = i.was or e.hash = i.hash
  order by c.partition for update of c),
moved as (
  update saga_checkpoint c set position = g.position, log_epoch = g.log_epoch, hash = g.hash
  from good g where c.region = $1 and c.partition = g.partition and g.position <> g.was),
kept as (
  insert into saga_order (region, partition, order_id, schema_version, placed)
  select $1, i.* from unnest($8::int[], $9::text[], $10::int[], $11::bytea[]) i(partition, order_id, schema_version, placed)
  join good g on g.partition = i.partition
  on conflict (region, partition, order_id) do nothing),
dropped as (
  delete from saga_order o using unnest($12::int[], $13::text[]) i(partition, order_id) join good g on g.partition = i.partition
  where o.region = $1 and o.partition = i.partition and o.order_id = i.order_id),
timers as (
  insert into saga_timer as t (region, partition, kind, subject, due_ms, position, cause, attempt, traceparent)
  select $1, i.*
  from unnest($14::int[], $15::smallint[], $16::text[], $17::bigint[], $18::bigint[], $19::uuid[], $20::int[], $21::text[])
    i(partition, kind, subject, due_ms, position, cause, attempt, traceparent)
  join good g on g.partition = i.partition
  on conflict (region, partition, kind, subject) do update
  set due_ms = excluded.due_ms, position = excluded.position, cause = excluded.cause, attempt = excluded.attempt,
    traceparent = excluded.traceparent),
cleared as (
  delete from saga_timer t using unnest($22::int[], $23::smallint[], $24::text[]) i(partition, kind, subject)
  join good g on g.partition = i.partition
  where t.region = $1 and t.partition = i.partition and t.kind = i.kind and t.subject = i.subject),
steps as (
  insert into saga_step (region, partition, position, kind, subject, cause, time_ms, attempt, traceparent, schema_version, placed)
  select $1, i.*
  from unnest($25::int[], $26::bigint[], $27::smallint[], $28::text[], $29::uuid[], $30::bigint[], $31::int[], $32::text[], $33::int[], $34::bytea[])
    i(partition, position, kind, subject, cause, time_ms, attempt, traceparent, schema_version, placed)
  join good g on g.partition = i.partition),
done as (
  delete from saga_step s using unnest($35::int[], $36::bigint[], $37::smallint[]) i(partition, position, kind)
  join good g on g.partition = i.partition
  where s.region = $1 and s.partition = i.partition and s.position = i.position and s.kind = i.kind),
renewed as (
  update saga_step s set time_ms = i.time_ms, attempt = i.attempt
  from unnest($38::int[], $39::bigint[], $40::smallint[], $41::bigint[], $42::int[]) i(partition, position, kind, time_ms, attempt)
  join good g on g.partition = i.partition
  where s.region = $1 and s.partition = i.partition and s.position = i.position and s.kind = i.kind)
select g.partition from good g
