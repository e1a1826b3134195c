-- heads $2..$7: partition (distinct), epoch, batch, position, number of new events, hash after them          $1: region
-- repeats $8..$11: partition, stream, request_id, bucket                     (where an earlier reply may stand)
-- ledger $12..$21: partition, bucket, stream, request_id, method, command, fingerprint, reply, actor, recorded_ms
-- streams $22..$25: partition, stream, expected, new version                 (one row per stream touched)
-- events $26..$43: the columns of event behind region
-- kept $44, $45: the first and the last bucket of the repeats: others are left out of the plan when it starts, not only row by row
--
-- The owner says what it believes of each partition; `fence` yields those where that holds, locked in order. A partition
-- with a repeated request or a stale stream is left out whole; every write joins `good`. A partition that comes back
-- neither as done, dup nor stale was fenced. The laterals with a limit keep index probes whatever the planner believes.
with fence as materialized (
  select h.partition, i.n, i.hash
  from unnest($2::int[], $3::bigint[], $4::bigint[], $5::bigint[], $6::int[], $7::bytea[]) i(partition, epoch, batch, position, n, hash)
  join partition_head h on h.region = $1 and h.partition = i.partition and h.epoch = i.epoch and h.batch = i.batch and h.position = i.position
  order by h.partition for no key update of h),
dup as materialized (
  select i.ord, i.partition, l.fingerprint, l.reply
  from unnest($8::int[], $9::text[], $10::uuid[], $11::int[]) with ordinality i(partition, stream, request_id, bucket, ord)
  cross join lateral (
    select fingerprint, reply from ledger l
    where l.region = $1 and l.partition = i.partition and l.bucket = i.bucket and l.request_id = i.request_id and l.stream = i.stream
      and l.bucket between $44 and $45
    limit 1) l),
stale as materialized (
  select i.ord, i.partition, coalesce(h.version, 0) as version
  from unnest($22::int[], $23::text[], $24::bigint[]) with ordinality i(partition, stream, expected, ord)
  left join lateral (
    select version from stream_head h where h.region = $1 and h.partition = i.partition and h.stream = i.stream limit 1) h on true
  where coalesce(h.version, 0) <> i.expected),
good as materialized (
  select f.partition, f.n, f.hash from fence f
  where not exists (select from dup d where d.partition = f.partition) and not exists (select from stale s where s.partition = f.partition)),
heads as (
  update partition_head h set batch = h.batch + 1, position = h.position + g.n, hash = g.hash
  from good g where h.region = $1 and h.partition = g.partition
  returning h.partition, h.position),
streams as (
  insert into stream_head as h (region, partition, stream, version)
  select $1, i.partition, i.stream, i.version
  from unnest($22::int[], $23::text[], $24::bigint[], $25::bigint[]) i(partition, stream, expected, version)
  join good g on g.partition = i.partition where i.version <> i.expected
  on conflict (region, partition, stream) do update set version = excluded.version),
events as (
  insert into event (region, partition, position, epoch, hash, stream, version, type, schema_version, payload, event_id, request_id,
    causation_id, correlation_id, actor, hlc, traceparent, home_epoch, key_id)
  select $1, i.*
  from unnest($26::int[], $27::bigint[], $28::bigint[], $29::bytea[], $30::text[], $31::bigint[], $32::text[], $33::int[], $34::bytea[],
    $35::uuid[], $36::uuid[], $37::uuid[], $38::uuid[], $39::text[], $40::bigint[], $41::text[], $42::bigint[], $43::uuid[])
    i(partition, position, epoch, hash, stream, version, type, schema_version, payload, event_id, request_id, causation_id, correlation_id,
      actor, hlc, traceparent, home_epoch, key_id)
  join good g on g.partition = i.partition),
remembered as (
  insert into ledger (region, partition, bucket, stream, request_id, method, command, fingerprint, reply, actor, recorded_ms)
  select $1, i.*
  from unnest($12::int[], $13::int[], $14::text[], $15::uuid[], $16::text[], $17::bytea[], $18::bytea[], $19::bytea[], $20::text[], $21::bigint[])
    i(partition, bucket, stream, request_id, method, command, fingerprint, reply, actor, recorded_ms)
  join good g on g.partition = i.partition)
select 'done' what, partition, 0::bigint ord, position, null::bytea fingerprint, null::bytea reply from heads
union all select 'dup', partition, ord, 0, fingerprint, reply from dup
union all select 'stale', partition, ord, version, null, null from stale
