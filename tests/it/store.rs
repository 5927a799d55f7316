//! Every store keeps the same laws; each runs the whole suite.

mod agreement;
mod console;
mod fixture;
mod guard;
mod laws;
mod plans;
mod postgres;
mod sqlite;
mod watch;

/// Runs every law against one kind of store. `$open` gives a fixture whose `store` is new and empty.
macro_rules! conformance {
    ($store:ident, $open:path, [$($law:ident),+ $(,)?]) => {
        mod $store {
            $(
                #[tokio::test]
                async fn $law() {
                    let fixture = $open().await;
                    super::laws::$law(fixture.store()).await;
                }
            )+
        }
    };
}

/// The list of laws, once for all stores.
macro_rules! every_law {
    ($($store:ident: $open:path),+ $(,)?) => {
        $(conformance!($store, $open, [
            claim_records_doubt_before_returning,
            what_a_batch_finds_is_claimed_with_it,
            nothing_is_claimed_twice,
            outcome_with_stale_token_changes_nothing,
            cursor_and_entries_commit_together,
            one_open_entry_per_resource,
            equal_rows_change_nothing,
            source_that_went_back_leaves_nothing_to_send,
            entry_numbers_are_never_used_twice,
            claims_are_fair_between_installations,
            claims_go_on_after_the_last_installation_and_wrap_around,
            backlog_of_one_installation_does_not_hide_another,
            requests_in_flight_count_against_their_installation,
            excluded_installation_is_not_claimed,
            claim_gives_no_more_than_its_tokens,
            paused_installation_is_not_claimed,
            manual_pause_ends_by_itself,
            pauses_of_two_kinds_end_separately,
            pause_keeps_its_beginning,
            failed_probe_pauses_nothing_that_was_resumed_meanwhile,
            probes_come_longest_waiting_first,
            rate_limit_delays_only_its_installation,
            shorter_rate_limit_does_not_end_a_longer_one,
            clock_set_back_strands_nothing,
            next_due_does_not_return_what_cannot_be_claimed,
            expired_lease_keeps_doubt_and_is_late,
            lease_of_a_process_that_is_gone_ends_at_once,
            change_in_flight_makes_the_next_entry,
            split_after_rejection_sends_secrets_first,
            dead_letter_reopens_when_its_value_changes,
            lost_answer_is_sent_once_more_after_late_apply,
            old_attempts_are_pruned_by_themselves,
            unusable_row_is_reported_once_per_change,
            usable_row_ends_the_quarantine,
            rows_without_ids_are_told_apart_and_forgotten_by_a_sweep,
            missing_resource_is_counted_once,
            unusable_row_is_not_missing,
            keys_come_in_byte_order,
            moved_row_is_read_again_until_it_was,
            prune_deletes_only_what_is_closed_and_old,
            counts_tell_what_is_there,
            glance_tells_what_a_pass_needs,
            watch_belongs_to_one_at_a_time,
            pass_under_a_lost_watch_commits_nothing,
            requests_of_other_owners_count_against_their_installation,
        ]);)+
    };
}

every_law! {
    memory: super::fixture::memory,
    sqlite_file: super::fixture::sqlite,
    postgres_schema: super::fixture::postgres,
    postgres_pooled: super::fixture::pooled_postgres,
}
