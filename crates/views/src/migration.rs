//! Migrations of the view tables. Expand first, contract in a later release.

use sea_orm_migration::{
    MigrationName, MigrationTrait, MigratorTrait, SchemaManager, async_trait,
    sea_orm::{
        ConnectionTrait, DbErr, DynIden,
        sea_query::{Alias, IntoIden},
    },
};

/// Creates and changes the view tables; run by [`souk_read_store::ReadStore::install`].
pub struct ViewsMigrator;

impl MigratorTrait for ViewsMigrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(M0001Views)]
    }

    fn migration_table_name() -> DynIden {
        Alias::new("views_migration").into_iden()
    }
}

struct M0001Views;

impl MigrationName for M0001Views {
    fn name(&self) -> &str {
        "m0001_views"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for M0001Views {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for view in ["product_view", "availability_view", "cart_view", "order_view"] {
            manager.get_connection().execute_unprepared(&point_view(view)).await?;
        }
        manager.get_connection().execute_unprepared(REST).await?;
        Ok(())
    }
}

/// The columns that every view of one entity begins with.
fn point_view(name: &str) -> String {
    let filters = match name {
        "product_view" => "state smallint not null, category text collate \"C\" not null, tags text[] not null,",
        "order_view" => "customer_id text collate \"C\" not null, state smallint not null, placed_ms bigint not null,",
        _ => "",
    };
    // Room on the pages keeps updates heap-only: stock changes with every reservation, a product seldom.
    let fillfactor = match name {
        "availability_view" => 50,
        "product_view" => 90,
        _ => 70,
    };
    format!(
        r#"create table {name} (
    region smallint not null,
    partition int not null,
    key text collate "C" not null,
    version bigint not null,
    position bigint not null,
    revision int not null,
    stale_since bigint,
    parked_at bigint,
    updated_ms bigint not null,
    body bytea not null,
    {filters}
    primary key (region, partition, key)
) with (fillfactor = {fillfactor})"#
    )
}

/// Lists walk their index in the order of their pages, whatever partition a row is of.
const REST: &str = r#"
create index product_view_by_key on product_view (key);
create index product_view_by_state on product_view (state, key);
create index product_view_by_category on product_view (category, key);
create index product_view_by_tag on product_view using gin (tags);

create index order_view_by_time on order_view (placed_ms desc, key desc);
create index order_view_by_customer on order_view (customer_id, placed_ms desc, key desc);
create index order_view_parked on order_view (stale_since) where stale_since is not null;
create index order_view_by_state on order_view (state, placed_ms desc, key desc);

create table order_timeline (
    region smallint not null,
    partition int not null,
    key text collate "C" not null,
    version bigint not null,
    position bigint not null,
    revision int not null,
    projected_ms bigint not null,
    body bytea not null,
    primary key (region, partition, key, version)
);

create table sales_day (
    region smallint not null,
    partition int not null,
    day int not null,
    product_id text collate "C" not null,
    currency text collate "C" not null,
    position bigint not null,
    revision int not null,
    units bigint not null,
    revenue bigint not null,
    primary key (region, partition, day, product_id, currency)
) with (fillfactor = 70);
create index sales_day_by_day on sales_day (day, product_id, currency);
create index sales_day_by_product on sales_day (product_id, day, currency);
"#;
