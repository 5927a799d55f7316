//! A process that stands still, as one does that was frozen or whose machine was: what it goes on to do after a request's time.

use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use futures_util::poll;
use reconciled::plan::{Answer, AnswerKind, LostKind};
use reconciled::vercel::{Marketplace as _, Settings};

use super::server::{Reply, Server};
use super::{client, key, patch, secrets, settings, token};

const REQUEST_TIMEOUT: Duration = Duration::from_millis(100);
/// More than anything here needs to settle: each turn looks at the sockets once and runs whatever task is woken.
const TURNS: usize = 100;

/// Lets everything else go on until it waits for something that does not come.
async fn settle() {
    for _ in 0..TURNS {
        tokio::task::yield_now().await;
    }
}

/// One thread runs all of it, so that it stands still when this blocks.
#[tokio::test]
async fn a_process_that_stood_still_while_it_connected_sends_nothing_after_the_request_s_time() {
    let (token, key, patch, secrets) = (token(), key(), patch(), secrets());
    let mut steps = 0;
    loop {
        steps += 1;
        let server = Server::start(|_| Reply::Hold(Vec::new())).await;
        let client = client(&Settings {
            request_timeout: REQUEST_TIMEOUT,
            ..settings(&server.url())
        });
        let mut update: Pin<Box<dyn Future<Output = Answer> + '_>> =
            Box::pin(client.update(&token, &key, &patch, Some(&secrets)));
        // It goes on by so many steps; what its connection does in between is not waited for by anybody else.
        for _ in 0..steps {
            assert!(poll!(update.as_mut()).is_pending());
            settle().await;
        }
        if !server.received().is_empty() {
            break;
        }
        // It stands still until its time is over, and is woken by its connection.
        std::thread::sleep(REQUEST_TIMEOUT);
        let answer = poll!(update.as_mut());
        settle().await;
        assert_eq!(server.received().len(), 0, "sent in step {steps}");
        let answer = match answer {
            Poll::Ready(answer) => answer,
            Poll::Pending => update.await,
        };
        assert_eq!(answer.kind, AnswerKind::Lost(LostKind::Timeout));
    }
    assert!(steps > 1, "it never waited before it sent");
}

/// The connection is a task of its own, and comes to write after whoever gave it the request.
#[tokio::test]
async fn a_process_that_stood_still_before_its_connection_wrote_sends_nothing_after_the_request_s_time()
 {
    let (token, key, patch, secrets) = (token(), key(), patch(), secrets());
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
    let server = Server::start(move |_| Reply::KeepOpen(answer.into())).await;
    let client = client(&Settings {
        request_timeout: REQUEST_TIMEOUT,
        ..settings(&server.url())
    });
    let update = || Box::pin(client.update(&token, &key, &patch, Some(&secrets)));
    let is_done = |answer: Answer| matches!(answer.kind, AnswerKind::Http { status: 200, .. });
    // The connection stands from now on; a slow machine may need more than one request's time for it.
    while !is_done(update().await) {}
    settle().await;
    let before = server.received().len();
    let mut late = update();
    assert!(poll!(late.as_mut()).is_pending());
    // It stands still with the request given to the connection, which goes on first.
    std::thread::sleep(REQUEST_TIMEOUT);
    settle().await;
    assert_eq!(server.received().len(), before, "sent");
    assert_eq!(late.await.kind, AnswerKind::Lost(LostKind::Timeout));
    // No more than the connection was lost.
    while !is_done(update().await) {}
}
