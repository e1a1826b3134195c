//! The statements over view tables, built from their description. Names come from `&'static` descriptions in our own code,
//! values only ever from binds.

use bytes::Bytes;
use sqlx::{
    Arguments as _, Postgres, Row as _,
    postgres::{PgArguments, PgRow},
    query::Query,
};

use crate::{Batch, Column, Kind, ReadStoreError, Row, RowKey, Table, Value, checkpoint::log_id, table::PARKED_AT};

impl Column {
    /// Type of the array its values are bound as. Numbers travel as bigint and lists as array literals, for `unnest` would
    /// flatten an array of arrays.
    fn array(self) -> &'static str {
        match self.kind {
            Kind::Small | Kind::Int | Kind::Big | Kind::Sum => "bigint[]",
            Kind::Text | Kind::Texts => "text[]",
            Kind::Bytes => "bytea[]",
            Kind::WrittenMs => unreachable!("not bound"),
        }
    }

    fn cast(self) -> &'static str {
        match self.kind {
            Kind::Small => "::smallint",
            Kind::Int => "::int",
            Kind::Texts => "::text[]",
            Kind::Big | Kind::Sum | Kind::Text | Kind::Bytes | Kind::WrittenMs => "",
        }
    }
}

const POSITION: Column = Column::new("position", Kind::Big);
const REVISION: Column = Column::new("revision", Kind::Int);

impl Table {
    /// Key columns, position, revision, values: what a [`Row`] holds after its log.
    fn bound(&self) -> impl Iterator<Item = &Column> {
        self.key.iter().chain([&POSITION, &REVISION]).chain(self.value_columns())
    }
}

/// Names joined by commas, each after `prefix`.
fn list<'a>(prefix: &str, columns: impl IntoIterator<Item = &'a Column>) -> String {
    columns.into_iter().map(|column| format!("{prefix}{}", column.name)).collect::<Vec<_>>().join(", ")
}

/// `from unnest(…) i(region, partition, columns…)` with binds counted from `next`.
fn unnest<'a>(columns: impl Iterator<Item = &'a Column> + Clone, next: &mut usize) -> String {
    let mut bind = |kind: &str| {
        let text = format!("${next}::{kind}");
        *next += 1;
        text
    };
    let mut arrays = vec![bind("smallint[]"), bind("int[]")];
    arrays.extend(columns.clone().map(|column| bind(column.array())));
    format!("unnest({}) i(region, partition, {})", arrays.join(", "), list("", columns))
}

/// The whole write of a batch as one statement, hence one implicit transaction that no client can leave open. It has the
/// shape of the append: `fence` locks, in order, the checkpoints that are as the projector believes (its own term, epoch and
/// position), and every write joins it. A log whose checkpoint is another one keeps its rows untouched.
///
/// It names only the tables that get rows, and events set aside only if it `parks` or releases some: a statement's start opens
/// whatever it names.
pub(crate) fn write(tables: &[&'static Table], parks: bool) -> String {
    let mut sql = "with fence as materialized (\
        select c.region, c.partition, i.new_epoch, i.new_position, i.new_hash, i.new_whole \
        from unnest($1::smallint[], $2::int[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bytea[], $9::bool[]) \
        i(region, partition, fence, epoch, position, new_epoch, new_position, new_hash, new_whole) \
        join read_checkpoint c on c.region = i.region and c.partition = i.partition \
        and c.fence = i.fence and c.epoch = i.epoch and c.position = i.position \
        order by c.region, c.partition for no key update of c), "
        .to_owned();
    if parks {
        sql.push_str(
            "released as (delete from parked_event p using unnest($12::smallint[], $13::int[], $14::text[]) i(region, partition, stream) \
            join fence f on f.region = i.region and f.partition = i.partition \
            where p.region = i.region and p.partition = i.partition and p.stream = i.stream returning p.region, p.partition), \
            parked as (insert into parked_event (region, partition, position, stream, envelope, reason, parked_ms) \
            select f.region, f.partition, i.position, i.stream, i.envelope, i.reason, $11::bigint \
            from unnest($15::smallint[], $16::int[], $17::bigint[], $18::text[], $19::bytea[], $20::text[]) \
            i(region, partition, position, stream, envelope, reason) \
            join fence f on f.region = i.region and f.partition = i.partition returning region, partition), ",
        );
    }
    sql.push_str(
        "moved as (update read_checkpoint c \
        set epoch = f.new_epoch, position = f.new_position, hash = f.new_hash, revision = $10::int, updated_ms = $11::bigint, \
        rebuilding = c.rebuilding and not f.new_whole",
    );
    if parks {
        sql.push_str(
            ", parked = c.parked + (select count(*)::int from parked p where p.region = f.region and p.partition = f.partition) \
            - (select count(*)::int from released r where r.region = f.region and r.partition = f.partition), \
            repaired_ms = case when exists (select 1 from released r where r.region = f.region and r.partition = f.partition) \
            then greatest(c.repaired_ms + 1, $11::bigint) else c.repaired_ms end",
        );
    }
    sql.push_str(
        " from fence f where c.region = f.region and c.partition = f.partition \
        returning c.region, c.partition, c.fence, c.epoch, c.position, c.hash, c.revision, c.parked, c.repaired_ms, c.updated_ms, c.rebuilding)",
    );
    let mut next = if parks { 21 } else { 12 };
    for (index, table) in tables.iter().enumerate() {
        sql.push_str(&format!(", w{index} as ({})", upsert(table, &mut next)));
    }
    sql.push_str(" select * from moved");
    sql
}

fn upsert(table: &Table, next: &mut usize) -> String {
    let written = table.columns.iter().filter(|column| column.kind == Kind::WrittenMs);
    let mut values: Vec<_> = table.bound().map(|column| format!("i.{}{}", column.name, column.cast())).collect();
    values.extend(written.clone().map(|_| "$11::bigint".to_owned()));
    let set: Vec<_> = [&POSITION, &REVISION]
        .into_iter()
        .chain(table.value_columns())
        .chain(written.clone())
        .map(|column| match column.kind {
            // Saturates like the fold: an overflow would fail the transaction of every log.
            Kind::Sum => format!("{0} = least(t.{0}::numeric + excluded.{0}, {1})::bigint", column.name, i64::MAX),
            // Parked events are added when they are replayed, perhaps behind later ones.
            _ if table.adds_up() && *column == POSITION => "position = greatest(t.position, excluded.position)".to_owned(),
            _ => format!("{0} = excluded.{0}", column.name),
        })
        .collect();
    let newer = match (table.adds_up(), table.mark()) {
        (true, _) => String::new(),
        (false, None) => " where excluded.position > t.position".to_owned(),
        (false, Some(_)) => format!(
            " where excluded.position > t.position \
             or (excluded.position = t.position and excluded.{PARKED_AT} is distinct from t.{PARKED_AT})"
        ),
    };
    format!(
        "insert into {name} as t (region, partition, {columns}) select i.region, i.partition, {values} from {input} \
         join fence f on f.region = i.region and f.partition = i.partition \
         on conflict (region, partition, {key}) do update set {set}{newer}",
        name = table.name,
        columns = list("", table.bound().chain(written)),
        values = values.join(", "),
        input = unnest(table.bound().collect::<Vec<_>>().into_iter(), next),
        key = list("", table.key),
        set = set.join(", "),
    )
}

/// Empties every table of one log and sets its checkpoint before the first event, as one that is being rebuilt, if `fence` still holds it.
pub(crate) fn rewind(tables: &[&'static Table]) -> String {
    let mut sql = "with fence as materialized (select region, partition from read_checkpoint \
        where region = $1::smallint and partition = $2::int and fence = $3::bigint for no key update)"
        .to_owned();
    for (index, table) in tables.iter().enumerate() {
        sql.push_str(&format!(
            ", d{index} as (delete from {} t using fence f where t.region = f.region and t.partition = f.partition)",
            table.name
        ));
    }
    sql.push_str(", parked as (delete from parked_event p using fence f where p.region = f.region and p.partition = f.partition)");
    sql.push_str(
        " update read_checkpoint c set epoch = 0, position = 0, hash = $4::bytea, revision = 0, parked = 0, updated_ms = $5::bigint, \
         repaired_ms = greatest(c.repaired_ms + 1, $5::bigint), rebuilding = true \
         from fence f where c.region = f.region and c.partition = f.partition returning c.partition",
    );
    sql
}

/// Tells that a replica lives. Those that have not for a day are forgotten.
pub(crate) const HEARTBEAT: &str = "with gone as (delete from read_replica where role = 'projector' and id <> $1 \
    and heartbeat_at < clock_timestamp() - interval '1 day') \
    insert into read_replica (role, id, address, heartbeat_at) values ('projector', $1, $2, clock_timestamp()) \
    on conflict (role, id) do update set address = excluded.address, heartbeat_at = excluded.heartbeat_at";

/// Live replicas, those heard of within $1 seconds, and holders of logs: one kind of row has no log, the other no address.
pub(crate) const MEMBERS: &str = "select id, address, null::smallint as region, null::int as partition from read_replica \
    where role = 'projector' and heartbeat_at > clock_timestamp() - make_interval(secs => $1) \
    union all select holder, null, region, partition from read_checkpoint where holder <> '' order by 1";

/// Raises the fence of logs that nobody else holds who was heard of within $5 seconds, locked in order so that two
/// projectors cannot deadlock.
pub(crate) const CLAIM: &str = "with locked as materialized (\
    select c.region, c.partition from unnest($1::smallint[], $2::int[]) i(region, partition) \
    join read_checkpoint c on c.region = i.region and c.partition = i.partition \
    where c.holder in ('', $4) or not exists (select 1 from read_replica r where r.role = 'projector' and r.id = c.holder \
    and r.heartbeat_at > clock_timestamp() - make_interval(secs => $5)) \
    order by c.region, c.partition for no key update of c) \
    update read_checkpoint c set fence = greatest(c.fence + 1, $3::bigint), holder = $4 \
    from locked l where c.region = l.region and c.partition = l.partition \
    returning c.region, c.partition, c.fence, c.epoch, c.position, c.hash, c.revision, c.parked, c.repaired_ms, c.updated_ms, c.rebuilding";

/// Gives up logs that $3 holds.
pub(crate) const RELEASE: &str = "with locked as materialized (\
    select c.region, c.partition from unnest($1::smallint[], $2::int[]) i(region, partition) \
    join read_checkpoint c on c.region = i.region and c.partition = i.partition and c.holder = $3 \
    order by c.region, c.partition for no key update of c) \
    update read_checkpoint c set holder = '' from locked l where c.region = l.region and c.partition = l.partition";

pub(crate) const LEAVE: &str = "delete from read_replica where role = 'projector' and id = $1";

/// Rows by their keys. `offset 0` keeps the look-up a look-up per key, whatever size the table had when it was planned.
pub(crate) fn load(table: &Table) -> String {
    let mut next = 1;
    let keys = table.key.iter().map(|column| format!("t.{0} = i.{0}{1}", column.name, column.cast()));
    format!(
        "select r.* from {} cross join lateral (select t.region, t.partition, {} from {} t \
         where t.region = i.region and t.partition = i.partition and {} offset 0) r",
        unnest(table.key.iter(), &mut next),
        list("t.", table.bound()),
        table.name,
        keys.collect::<Vec<_>>().join(" and "),
    )
}

/// Entities with events set aside, in order of log and stream: of the logs in $1 and $2, only $3 unless null, behind ($4, $5,
/// $6) unless null, at most $7.
pub(crate) const PARKED_ENTITIES: &str = "select e.* from unnest($1::smallint[], $2::int[]) i(region, partition) \
    cross join lateral (select p.region, p.partition, p.stream, count(*) as events, min(p.position) as position, \
    (array_agg(p.reason order by p.position))[1] as reason, min(p.parked_ms) as parked_ms from parked_event p \
    where p.region = i.region and p.partition = i.partition and ($3::text is null or p.stream = $3) \
    and ($4::smallint is null or (p.region, p.partition, p.stream) > ($4, $5::int, $6::text)) \
    group by p.region, p.partition, p.stream order by p.stream limit $7) e order by e.region, e.partition, e.stream limit $7";

/// The events set aside of one entity behind a position, in order.
pub(crate) const PARKED_EVENTS: &str = "select position, envelope, reason, parked_ms from parked_event \
    where region = $1::smallint and partition = $2::int and stream = $3 and position > $4::bigint order by position limit $5";

/// Another reason for the first event set aside of an entity, if fence $4 still holds its log.
pub(crate) const BLAME: &str = "with fence as materialized (select region, partition from read_checkpoint \
    where region = $1::smallint and partition = $2::int and fence = $4::bigint for no key update) \
    update parked_event p set reason = $5 from fence f where p.region = f.region and p.partition = f.partition and p.position = \
    (select min(q.position) from parked_event q where q.region = f.region and q.partition = f.partition and q.stream = $3) \
    returning p.position";

/// A page of one log's rows in order of key, after the key bound from $4 on if `after`. One snapshot with the checkpoint,
/// which comes with every row and alone when there is none.
pub(crate) fn scan(table: &Table, after: bool) -> String {
    let binds = table.key.iter().enumerate().map(|(index, column)| {
        let kind = column.array().trim_end_matches("[]");
        format!("${}::{kind}{}", index + 4, column.cast())
    });
    let beyond = format!("and ({}) > ({})", list("t.", table.key), binds.collect::<Vec<_>>().join(", "));
    format!(
        "select c.fence, c.epoch, c.position, c.hash, c.revision, c.parked, c.repaired_ms, c.updated_ms, c.rebuilding, r.* from read_checkpoint c left join lateral (\
         select t.region, t.partition, {} from {} t where t.region = c.region and t.partition = c.partition {} order by {} limit $3\
         ) r on true where c.region = $1 and c.partition = $2 order by {}",
        list("t.", table.bound()),
        table.name,
        if after { beyond.as_str() } else { "" },
        list("t.", table.key),
        list("r.", table.key),
    )
}

/// Room for all values of [`write`] at once: to grow a megabyte by doubling costs more than to fill it.
pub(crate) fn arguments_for(batch: &Batch) -> PgArguments {
    /// What a row has beside its bytes, in all columns.
    const ROW: usize = 256;
    let (rows, tables) = (batch.rows.values().flatten(), batch.rows.len());
    let mut arguments = PgArguments::default();
    arguments.reserve(20 * (tables + 1), ROW * batch.advances.len() + rows.map(|row| ROW + row.bytes()).sum::<usize>());
    arguments
}

type Prepared<'q> = Query<'q, Postgres, PgArguments>;

/// Binds the logs and key columns of `keys`, one array each.
pub(crate) fn bind_keys<'q>(query: Prepared<'q>, table: &Table, keys: &[&RowKey]) -> Prepared<'q> {
    let mut query = query
        .bind(keys.iter().map(|key| key.log.region.0 as i16).collect::<Vec<_>>())
        .bind(keys.iter().map(|key| i32::from(key.log.partition.0)).collect::<Vec<_>>());
    for (index, column) in table.key.iter().enumerate() {
        query = bind_column(query, *column, keys.iter().map(|key| &key.key[index]));
    }
    query
}

/// Binds whole rows, one array per column.
pub(crate) fn bind_rows<'q>(query: Prepared<'q>, table: &Table, rows: &[Row]) -> Prepared<'q> {
    let keys: Vec<_> = rows.iter().map(|row| &row.key).collect();
    let mut query = bind_keys(query, table, &keys)
        .bind(rows.iter().map(|row| row.position.0 as i64).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| i64::from(row.revision)).collect::<Vec<_>>());
    for (index, column) in table.value_columns().enumerate() {
        query = bind_column(query, *column, rows.iter().map(|row| &row.values[index]));
    }
    query
}

fn bind_column<'q, 'v>(query: Prepared<'q>, column: Column, values: impl Iterator<Item = &'v Value>) -> Prepared<'q> {
    match column.kind {
        Kind::Small | Kind::Int | Kind::Big | Kind::Sum => query.bind(values.map(Value::as_int).collect::<Vec<_>>()),
        Kind::Text => query.bind(values.map(Value::as_text).collect::<Vec<_>>()),
        Kind::Bytes => query.bind(values.map(|value| value.as_bytes().map(Bytes::as_ref)).collect::<Vec<_>>()),
        Kind::Texts => query.bind(values.map(array_literal).collect::<Vec<_>>()),
        Kind::WrittenMs => unreachable!("value_columns leaves it out"),
    }
}

/// Binds one key after another, for [`scan`].
pub(crate) fn bind_key<'q>(query: Prepared<'q>, key: &RowKey) -> Prepared<'q> {
    key.key.iter().fold(query, |query, value| match value {
        Value::Int(number) => query.bind(*number),
        Value::Text(text) => query.bind(text.clone()),
        Value::Bytes(bytes) => query.bind(bytes.to_vec()),
        Value::Texts(_) | Value::Null => query.bind(None::<String>),
    })
}

/// A list of texts as Postgres reads arrays: every element quoted, quotes and backslashes escaped.
fn array_literal(value: &Value) -> Option<String> {
    let Value::Texts(texts) = value else { return None };
    let quoted = texts.iter().map(|text| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")));
    Some(format!("{{{}}}", quoted.collect::<Vec<_>>().join(",")))
}

/// Reads a row whose columns begin at `first` as region, partition and the columns of [`Table::bound`].
pub(crate) fn decode_row(table: &Table, row: &PgRow, first: usize) -> Result<Row, ReadStoreError> {
    let unreadable = |error: sqlx::Error| ReadStoreError::Corrupt { table: table.name.to_owned(), reason: error.to_string() };
    let log = log_id(row.try_get(first).map_err(unreadable)?, row.try_get(first + 1).map_err(unreadable)?);
    let mut values = table
        .bound()
        .enumerate()
        .map(|(index, column)| decode_value(column.kind, row, first + 2 + index))
        .collect::<Result<Vec<_>, _>>()
        .map_err(unreadable)?;
    let rest = values.split_off(table.key.len() + 2);
    let numbers = values.split_off(table.key.len());
    let number = |index: usize| numbers[index].as_int().unwrap_or_default() as u64;
    Ok(Row {
        key: RowKey { log, key: values },
        position: souk_event_sourcing::Position(number(0)),
        revision: number(1) as u32,
        values: rest,
    })
}

fn decode_value(kind: Kind, row: &PgRow, index: usize) -> Result<Value, sqlx::Error> {
    let value = match kind {
        Kind::Small => row.try_get::<Option<i16>, _>(index)?.map(|number| Value::Int(number.into())),
        Kind::Int => row.try_get::<Option<i32>, _>(index)?.map(|number| Value::Int(number.into())),
        Kind::Big | Kind::Sum | Kind::WrittenMs => row.try_get::<Option<i64>, _>(index)?.map(Value::Int),
        Kind::Text => row.try_get::<Option<String>, _>(index)?.map(Value::Text),
        Kind::Bytes => row.try_get::<Option<Vec<u8>>, _>(index)?.map(|bytes| Value::Bytes(bytes.into())),
        Kind::Texts => row.try_get::<Option<Vec<String>>, _>(index)?.map(Value::Texts),
    };
    Ok(value.unwrap_or(Value::Null))
}
