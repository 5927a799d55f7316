//! The sources against real servers: one suite that every database passes, and what only one of them can show.

pub(crate) mod bed;
mod crowd;
mod feed;
mod hostile;
mod late;
mod listen;
mod outage;
mod pages;
pub(crate) mod rows;
mod shape;

/// Declares each test once for every database.
macro_rules! on_every_database {
    ($($name:ident),* $(,)?) => {
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::source::bed::Bed::postgres().await).await;
            })*
        }
        mod mariadb {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::source::bed::Bed::mariadb().await).await;
            })*
        }
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::source::bed::Bed::sqlite()).await;
            })*
        }
    };
}
pub(crate) use on_every_database;
