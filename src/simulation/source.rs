//! The provider's database as the daemon reads it: await points, outages, single errors.

use std::time::Duration;

use async_trait::async_trait;

use crate::model::{AccessToken, Field, FieldSet, InstallationId, RawRow, ResourceKey};
use crate::source::{
    CursorKind, Identity, PollFrom, PollPage, RawKey, Shape, Source, SourceError, Suspects,
    SweepPage, rows_of,
};

use super::world::{Points, Shared, World};

/// The simulated source, as one process sees it.
pub(super) struct SimSource {
    pub(super) world: Shared,
    pub(super) points: Points,
}

impl SimSource {
    async fn read<T>(&self, read: impl FnOnce(&mut World) -> T + Send) -> Result<T, SourceError>
    where
        T: Send,
    {
        self.points.pass().await;
        let result = self.world.lock().read(read);
        self.points.pass().await;
        result
    }
}

impl World {
    fn read<T>(&mut self, read: impl FnOnce(&mut Self) -> T) -> Result<T, SourceError> {
        let rate = self.climate.rates.source_error;
        if self.now() < self.provider.down_until || self.strikes(rate) {
            self.say(format_args!("the source cannot be read"));
            let target = "simulated".to_owned();
            return Err(match self.chance.below(3) {
                0 => SourceError::Unreachable {
                    target,
                    problem: "no connection".to_owned(),
                },
                1 => SourceError::Timeout {
                    statement: "source query",
                    limit: "30s".to_owned(),
                },
                _ => SourceError::Query {
                    statement: "source query",
                    problem: "it was cancelled".to_owned(),
                },
            });
        }
        let result = read(self);
        if let Some(changes) = &mut self.restless {
            *changes += 1;
            let secrets = format!(r#"{{"URL":"v{changes}"}}"#);
            self.put(0, Field::Secrets, &secrets);
        }
        Ok(result)
    }
}

#[async_trait]
impl Source for SimSource {
    async fn shape(&self) -> Result<Shape, SourceError> {
        let world = self.world.lock();
        let managed: FieldSet = world.climate.managed;
        let cursor = world.climate.has_cursor.then_some(CursorKind::Integer);
        Ok(Shape {
            managed,
            cursor,
            overlap: Duration::from_millis(world.climate.overlap_ms.unsigned_abs()),
            feed: false,
        })
    }

    async fn poll_page(
        &self,
        from: &PollFrom,
        limit: u32,
        suspects: Option<Suspects>,
    ) -> Result<PollPage, SourceError> {
        let mut page = self
            .read(|world| {
                let now = world.now();
                world.passed_over(from);
                let page = world.provider.poll_page(from, limit, now);
                let (rows, horizon) = (page.rows.len(), &page.horizon);
                world.log.say(
                    now,
                    format_args!("poll from {from:?}: {rows} rows, horizon {horizon:?}"),
                );
                page
            })
            .await?;
        let suspects = suspects.map_or_else(Vec::new, |suspects| suspects(&page.rows));
        if !suspects.is_empty() {
            // Each statement sees what was committed when it began.
            let ids = self.fetch_ids(&suspects).await?;
            page.found = rows_of(suspects, &ids);
        }
        Ok(page)
    }

    async fn count_at(&self, cursor: &str, most: u32) -> Result<u32, SourceError> {
        self.read(|world| world.provider.count_at(cursor, most, world.now()))
            .await
    }

    async fn sweep_page(
        &self,
        after: Option<&RawKey>,
        limit: u32,
    ) -> Result<SweepPage, SourceError> {
        self.read(|world| {
            let now = world.now();
            let page = world.provider.sweep_page(after, limit, now);
            world.say(format_args!("sweep: {} rows", page.rows.len()));
            page
        })
        .await
    }

    async fn fetch(&self, keys: &[ResourceKey]) -> Result<Vec<RawRow>, SourceError> {
        let time = self.world.lock().fetches_take.pop_front();
        if let Some(time) = time {
            self.points.take(time).await;
        }
        self.read(|world| {
            let now = world.now();
            let rows = world.provider.fetch(keys, now);
            world.say(format_args!(
                "{} of {} rows read by key",
                rows.len(),
                keys.len()
            ));
            rows
        })
        .await
    }

    async fn token(
        &self,
        installation_id: &InstallationId,
    ) -> Result<Option<AccessToken>, SourceError> {
        self.read(|world| world.provider.token(installation_id))
            .await
    }

    async fn identity(&self) -> Result<Identity, SourceError> {
        self.read(|world| world.provider.identity()).await
    }
}
