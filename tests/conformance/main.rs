//! The conformance suite: what the contract promises, shown over gRPC, by the same cases on every backend.
//!
//! Each case gets a database of its own. The table below is the only list of cases, each with the promises it
//! shows; `docs/promises.md` has the same seen from the promises, and `promises` compares the two. A case may
//! not opt out of a backend.

mod access;
mod analytics;
mod artifacts;
mod audit;
mod bounds;
mod configurations;
mod counts;
mod cut_streams;
mod deletion;
mod executions;
mod export;
mod greedy;
mod heartbeats;
mod ingest;
mod keys;
mod live_metrics;
mod metrics;
mod mirror;
mod mirrored;
mod notifications;
mod omitted;
mod ownership;
mod pages;
mod promises;
mod references;
mod repeats;
mod retention;
mod rollups;
mod scopes;
mod search;
mod service;
mod steps;
mod transport;
mod values;
mod verify;
mod watching;

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "every test binary uses a part of the harness")]
mod support;

use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};

use support::backend::{Backend, Kind};

/// One case and the promises it shows.
struct Case {
    name: &'static str,
    promises: &'static [&'static str],
}

static PASSED: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

/// Runs a case on a database of its own. The last case of a backend says how many passed.
fn conduct<F: Future<Output = ()>>(kind: Kind, case: impl FnOnce(Backend) -> F) {
    conduct_on(Backend::fresh(kind), case);
    let passed = PASSED[kind as usize].fetch_add(1, Ordering::SeqCst) + 1;
    if passed == CASES.len() {
        // Past the capturing of the test runner: this line is for the reader of every run.
        let line = format!("conformance {}: {passed} passed\n", kind.name());
        std::io::stdout().write_all(line.as_bytes()).expect("stdout can be written");
    }
}

fn conduct_on<F: Future<Output = ()>>(backend: Backend, case: impl FnOnce(Backend) -> F) {
    support::run(async {
        case(backend.clone()).await;
        backend.remove().await;
    });
    let breaches = support::router::breaches(backend.database_name());
    assert!(breaches.is_empty(), "this is not for shards:\n{}", breaches.join("\n"));
}

macro_rules! cases {
    ($($module:ident { $($case:ident: $($promise:literal)+,)+ })+) => {
        const CASES: &[Case] = &[
            $($(Case {
                name: concat!(stringify!($module), "::", stringify!($case)),
                promises: &[$($promise),+],
            },)+)+
        ];

        cases! { @backend sqlite Sqlite $($module { $($case)+ })+ }
        cases! { @backend mongodb Mongodb $($module { $($case)+ })+ }

        /// MongoDB as a server may find it. Not part of every run: `cargo test --test conformance found:: -- --ignored`.
        mod found {
            $(
                mod $module {
                    $(
                        #[test]
                        #[ignore = "the cases once more, on MongoDB as it may be found"]
                        fn $case() {
                            crate::conduct_on(crate::Backend::as_found(), crate::$module::$case);
                        }
                    )+
                }
            )+
        }
    };
    (@backend $backend:ident $kind:ident $($module:ident { $($case:ident)+ })+) => {
        mod $backend {
            $(
                mod $module {
                    $(
                        #[test]
                        fn $case() {
                            crate::conduct(crate::Kind::$kind, crate::$module::$case);
                        }
                    )+
                }
            )+
        }
    };
}

cases! {
    analytics {
        success_rates_equal_a_recount: "3.GetSuccessRates",
        a_report_counts_what_was_acknowledged_before: "3.GetReport" "3.analytics.freshness",
        reports_equal_a_recount_in_every_time_zone: "3.GetReport" "3.analytics.freshness",
        days_are_as_long_as_they_are_where_the_clock_changes: "3.GetReport",
        a_report_tells_which_steps_fail_and_what_changed: "3.GetReport",
        trends_equal_a_recount_and_flag_what_became_slower: "3.GetTrends",
        activity_equals_a_recount_by_hour_of_the_week: "3.GetUserActivity",
        the_slowest_steps_come_first: "3.ListSlowestSteps" "3.analytics.freshness",
        alike_errors_are_one_error: "3.ListTopErrors",
        reports_do_not_wait_for_a_bulk_load: "3.analytics.freshness" "3.search.freshness",
        every_bad_field_of_a_report_is_named: "3.errors.bad_request" "3.bounds.analytics",
    }
    executions {
        a_created_execution_has_every_field_that_was_sent: "1.executions" "3.CreateExecution",
        the_server_fills_in_what_the_client_leaves_out: "1.execution_id" "2.5" "3.CreateExecution",
        execution_ids_are_1_to_128_printable_ascii_characters: "1.execution_id",
        ids_that_differ_only_in_case_are_different: "1.execution_id" "1.step_key",
        times_are_cut_to_milliseconds: "1.times",
        clients_may_send_their_own_times_and_clocks_may_disagree: "2.5",
        an_execution_ends_once_and_in_one_of_three_ways: "2.1" "2.3" "3.FinishExecution",
        an_error_is_stored_whole: "1.executions" "1.steps" "3.names",
        metadata_is_merged_deeply: "3.UpdateExecution" "3.FinishExecution",
        merged_metadata_stays_within_its_bound: "3.bounds.metadata",
        an_execution_can_be_pinned_and_unpinned: "3.UpdateExecution",
        a_stale_expected_revision_is_aborted: "3.UpdateExecution",
        of_racing_updates_with_one_expected_revision_one_wins: "2.4" "3.UpdateExecution",
        of_racing_claims_with_the_same_words_one_wins: "2.4" "3.UpdateExecution",
        racing_finishes_of_an_execution_have_one_winner: "2.4",
        racing_creates_of_one_id_have_one_winner: "2.3" "2.4",
        revisions_grow_with_every_change_and_are_microseconds: "2.8",
        get_answers_basic_or_full: "3.GetExecution",
        cancelling_is_cooperative: "2.10" "3.RequestCancel" "3.Heartbeat",
        deleting_takes_the_steps_along: "3.DeleteExecution",
        a_step_that_races_a_delete_leaves_nothing_behind: "2.4" "3.DeleteExecution",
        an_unknown_execution_is_not_found: "3.errors.resource" "3.StartStep",
        a_write_is_read_by_its_writer_at_once: "2.7",
    }
    steps {
        the_statuses_of_a_step_obey_their_transitions: "2.1" "3.FinishStep",
        racing_finishes_of_a_step_have_one_winner: "2.4",
        steps_may_come_after_their_execution_ended: "2.2",
        finish_creates_an_unknown_step_when_it_is_named: "2.2" "1.steps" "3.FinishStep",
        a_start_that_comes_after_its_end_loses_nothing: "2.2" "2.3",
        a_plan_that_comes_after_its_steps_loses_nothing: "2.2" "3.PlanSteps",
        writes_answer_with_everything_but_input_and_output: "2.7",
        a_retry_keeps_the_earlier_tries: "1.steps" "2.1",
        a_retry_starts_afresh: "2.1" "3.StartStep",
        the_attempt_tells_a_repeat_from_a_retry: "2.3" "3.StartStep",
        a_step_has_a_number_and_may_have_a_key: "1.step_key" "3.GetStep" "3.UpdateStep" "3.FinishStep",
        assigned_step_ids_start_at_1_and_exceed_every_id_seen: "2.6" "3.StartStep",
        one_key_started_by_many_is_one_step: "1.step_key" "2.3" "2.4",
        a_plan_is_pending_steps: "2.1" "2.3" "3.PlanSteps",
        a_plan_with_a_cycle_or_an_unknown_step_is_refused_whole: "3.PlanSteps",
        an_update_of_a_step_merges: "3.UpdateStep",
        steps_are_listed_by_id_without_payloads: "3.ListSteps" "3.bounds.reply",
        sparse_step_ids_are_as_many_as_others: "2.6" "3.bounds.steps",
        only_where_the_greatest_number_is_taken_none_can_be_assigned: "2.6",
    }
    references {
        a_step_names_its_parent_by_key_in_either_order: "2.6.keys",
        a_finish_and_a_put_name_steps_by_key: "2.6.keys" "3.put",
        a_retry_and_a_late_start_keep_what_they_refer_to: "2.6.keys" "2.2",
        a_plan_knows_the_keys_it_refers_to: "2.6.keys" "3.PlanSteps",
        a_number_and_a_key_at_once_are_refused: "2.6.keys" "3.bounds.depends_on",
        what_belongs_to_a_step_is_found_under_either_name: "2.6.keys" "1.artifacts" "1.metrics" "3.ListArtifacts" "3.QueryMetrics",
        a_stream_of_writes_refers_by_key_without_waiting: "2.6.keys" "3.Ingest",
    }
    omitted {
        a_great_payload_ends_no_watch: "3.bounds.omitted" "4.events",
        a_run_is_read_back_with_its_payloads_in_pages: "3.bounds.omitted" "3.ListSteps",
        one_step_is_sent_whole_or_up_to_a_size: "3.bounds.omitted" "3.GetStep",
        a_great_record_loses_its_largest_fields_and_stays_listed: "3.bounds.omitted",
        a_record_with_omitted_fields_is_put_nowhere: "3.bounds.omitted" "3.put",
        a_great_configuration_is_listed_without_it: "3.bounds.omitted" "3.ListConfigurations",
    }
    repeats {
        creating_again_returns_the_stored_record: "2.3",
        creating_with_other_content_is_refused: "2.3",
        absent_null_and_empty_are_the_same_request: "2.3",
        starting_again_returns_the_stored_record: "2.3",
        starting_again_by_key_returns_the_number_it_got: "2.3" "2.6",
        finishing_an_execution_again_returns_the_stored_record: "2.3",
        finishing_a_step_again_returns_the_stored_record: "2.3",
        a_repeat_is_no_change: "2.3" "2.8" "4.2",
        a_late_repeat_of_an_update_undoes_nothing: "2.3.update_sequence",
        unary_calls_and_ingest_share_their_idempotence: "2.3" "3.Ingest",
    }
    values {
        keys_may_have_dots_dollars_and_any_unicode: "1.keys",
        a_key_with_a_zero_character_is_refused: "1.keys",
        integers_up_to_2_to_the_53_come_back_unchanged: "1.integers",
        numbers_that_are_none_are_refused: "1.non_finite",
        values_nest_30_deep_and_no_deeper: "1.nesting",
        null_absent_and_empty_are_told_apart_inside_values: "1.steps" "1.executions",
        input_and_output_are_any_json_value: "1.steps",
        a_change_leaves_alone_what_it_does_not_set: "1.untouched",
        great_values_come_back_whole: "3.bounds.payload" "3.bounds.reply",
    }
    pages {
        pages_are_complete_with_equal_and_missing_start_times: "1.executions" "3.ListExecutions" "3.pages.keyset",
        pages_stay_in_place_while_records_come_and_go: "3.pages.keyset",
        the_default_page_has_50_and_the_greatest_1000_records: "3.ListExecutions" "3.bounds.page",
        filters_mean_what_they_say: "3.ExecutionFilter",
        metadata_filters_compare_values_at_paths: "3.ExecutionFilter",
        a_page_examines_a_bounded_number_of_records: "3.pages.examined",
        a_page_ends_early_at_4_mib: "3.GetExecution" "3.bounds.reply",
        forged_and_foreign_page_tokens_are_refused: "3.errors.tokens",
        page_tokens_are_good_on_every_server: "3.pages.keyset",
    }
    counts {
        executions_are_counted_as_far_as_asked: "3.CountExecutions",
        a_count_that_would_examine_too_much_says_so: "3.CountExecutions" "3.pages.examined",
        steps_of_a_page_are_counted_by_status: "3.ListExecutions",
        steps_too_many_to_count_are_said_to_be_more: "3.ListExecutions" "3.pages.examined",
    }
    transport {
        a_deadline_that_passes_is_deadline_exceeded_on_every_path: "3.errors.deadline",
        a_call_and_an_unfinished_request_end_in_time: "3.budgets.time",
        more_calls_than_are_worked_on_are_refused_and_harm_no_other: "3.budgets.calls",
        readings_of_everything_have_few_places_and_give_them_back: "3.budgets.calls",
        uploads_have_places_and_give_them_back: "3.budgets.calls",
        an_upload_that_stands_still_ends_and_can_be_resumed: "3.budgets.time",
        messages_may_be_compressed: "3.compression",
        limits_hold_for_what_a_message_expands_to: "3.compression" "3.bounds.decoded",
        no_connection_takes_more_than_its_share_of_the_budget: "3.budgets.bytes",
    }
    greedy {
        an_error_fits_into_the_trailers_of_any_client: "3.errors.trailers",
        a_list_of_millions_is_one_violation: "3.errors.trailers" "3.bounds.elements",
        a_message_that_would_take_too_much_memory_is_refused: "3.bounds.decoded",
    }
    bounds {
        names_and_ids_have_at_most_256_characters: "3.bounds.names",
        required_names_are_required: "3.errors.bad_request",
        metadata_has_at_most_256_kib: "3.bounds.metadata",
        errors_have_at_most_64_kib_of_message: "3.bounds.error",
        input_and_output_have_at_most_6_mib: "3.bounds.payload",
        merged_output_stays_within_its_bound: "3.bounds.payload",
        depends_on_has_at_most_10_000_ids: "3.bounds.depends_on",
        a_filter_list_has_at_most_50_values: "3.ExecutionFilter",
        an_execution_has_a_bounded_number_of_steps: "3.bounds.steps",
        an_incoming_message_has_at_most_16_mib: "3.bounds.message",
        every_bad_field_is_named_at_once_before_any_look_up: "3.errors.bad_request",
        a_full_queue_is_resource_exhausted: "3.errors.retry",
        an_unknown_call_is_unimplemented: "3.errors.reason",
        a_refusal_carries_its_reason_in_ingest_too: "3.errors.reason" "3.Ingest",
    }
    heartbeats {
        silence_ends_an_execution_exactly_once_and_in_time: "2.9",
        a_heartbeat_revives_what_silence_ended: "2.9" "3.Heartbeat",
        a_finish_replaces_what_silence_ended: "2.9",
        a_finish_that_races_the_timeout_wins: "2.4" "2.9",
        every_write_is_a_sign_of_life: "2.9",
        heartbeats_are_no_change_and_seldom_stored: "2.9",
        a_heartbeat_needs_no_timeout: "3.Heartbeat",
        a_clock_that_is_set_neither_keeps_nor_ends_an_execution: "2.9",
        an_end_because_the_process_died_is_a_guess: "2.9" "3.Heartbeat" "3.FinishExecution",
    }
    ingest {
        every_write_is_answered_in_short: "3.Ingest",
        writes_of_one_execution_apply_in_order: "3.Ingest",
        a_refused_write_does_not_end_the_stream: "3.Ingest",
        an_answer_comes_without_the_end_of_the_stream: "3.Ingest",
        thousands_of_writes_flow_through_one_stream: "3.Ingest",
        a_whole_execution_is_kept_as_it_is: "3.put",
        a_whole_step_is_kept_as_it_is: "3.put",
        a_put_record_is_watched_and_goes_on_like_any_other: "3.put" "4.2",
        a_slow_reader_of_answers_holds_up_only_itself: "3.Ingest",
        nothing_follows_a_write_that_failed_for_now: "3.Ingest.failed",
        a_refusal_holds_nothing_up: "3.Ingest" "3.Ingest.failed",
        a_message_that_cannot_be_read_is_a_refusal_while_its_sequence_can: "3.Ingest.unreadable",
    }
    metrics {
        points_come_back_by_time_and_in_order_of_arrival: "1.metrics" "3.RecordMetrics" "3.QueryMetrics",
        points_are_told_by_name: "3.QueryMetrics",
        names_of_metrics_may_have_dots_dollars_and_any_unicode: "1.metrics" "3.QueryMetrics",
        intervals_have_least_greatest_mean_last_and_count: "3.QueryMetrics",
        many_points_make_many_pages_of_intervals: "3.QueryMetrics" "3.pages.keyset",
        a_page_of_intervals_looks_at_a_bounded_number_of_points: "3.pages.examined",
        too_old_and_too_new_points_are_counted_and_not_stored: "1.retention.metrics" "3.RecordMetrics",
        a_request_id_makes_a_retry_safe: "2.3.metrics",
        of_many_equal_requests_at_once_one_is_stored: "2.3.metrics",
        many_writers_of_one_execution_lose_nothing: "3.RecordMetrics",
        deleting_an_execution_takes_its_metrics_along: "3.DeleteExecution" "2.3.metrics",
        points_that_race_a_delete_leave_nothing_behind: "3.DeleteExecution",
        an_unknown_execution_has_no_metrics: "3.errors.resource" "3.RecordMetrics" "3.QueryMetrics",
        every_bad_field_of_a_point_is_named_at_once: "1.non_finite" "3.errors.bad_request" "3.RecordMetrics",
        metrics_have_bounds: "3.bounds.metrics" "3.bounds.reply",
        forged_and_foreign_tokens_of_metrics_are_refused: "3.errors.tokens",
        a_stream_of_metrics_is_answered_with_sums: "3.StreamMetrics",
        a_bad_message_ends_a_stream_of_metrics_and_says_what_is_stored: "3.StreamMetrics",
        metrics_flow_through_ingest_in_order: "3.Ingest" "3.RecordMetrics",
        points_are_put_as_they_are_and_once: "3.put",
        metrics_are_shared_by_all_servers: "3.RecordMetrics" "3.QueryMetrics",
    }
    live_metrics {
        a_watcher_gets_points_as_they_are_recorded: "4.metrics",
        the_last_points_come_before_the_end_of_a_watch: "4.metrics" "4.3",
        a_slow_watcher_of_metrics_misses_no_point: "4.metrics" "4.6",
        an_event_with_points_can_be_resumed_after: "4.metrics",
    }
    watching {
        a_watch_begins_with_the_current_state: "4.1",
        watching_many_begins_with_what_was_asked_for: "4.1",
        a_token_resumes_with_every_change_after_it: "4.1" "4.7",
        tokens_survive_a_restart: "4.7",
        an_acknowledged_write_reaches_every_watcher: "4.2" "4.4",
        a_watch_of_one_ends_when_all_has_ended: "4.3",
        an_end_comes_after_the_steps_that_were_written_before_it: "3.Ingest" "4.2" "4.3",
        a_pending_step_does_not_keep_a_watch_open: "4.3",
        a_silent_stream_gets_keepalives_with_tokens: "4.events" "4.1",
        a_keepalive_token_moves_on_past_changes_of_others: "4.1",
        a_deletion_is_told_with_the_ids: "4.4" "4.events",
        an_id_that_is_used_again_is_a_new_record: "4.4",
        a_record_that_leaves_the_filter_is_sent_once_more: "4.5",
        a_record_may_enter_a_filter: "4.5",
        steps_follow_their_execution: "4.5",
        payloads_come_only_when_asked_for: "4.events",
        a_slow_watcher_gets_the_latest_and_slows_nobody: "4.6",
        many_watchers_resume_together: "4.1",
        forged_and_foreign_resume_tokens_are_refused: "3.errors.tokens",
        a_token_that_history_no_longer_covers_is_out_of_range: "4.7",
        a_graceful_shutdown_ends_every_stream_in_time: "4.8",
        a_writer_that_opens_first_and_commits_last_is_not_missed: "4.2" "4.4",
        an_unknown_execution_cannot_be_watched: "3.errors.resource",
        a_great_snapshot_arrives_whole: "4.1",
        a_write_during_the_snapshot_is_not_lost: "4.2",
    }
    configurations {
        a_published_version_is_kept_whole: "1.configurations" "3.PublishConfiguration",
        the_same_content_again_is_the_stored_record: "2.3" "3.PublishConfiguration",
        racing_publishes_of_one_version_have_one_winner: "2.4" "3.PublishConfiguration",
        one_version_is_active_and_a_switch_is_one_step: "3.ActivateConfiguration" "3.GetConfiguration" "3.errors.resource",
        racing_activations_leave_exactly_one_active: "2.4" "3.ActivateConfiguration",
        of_two_first_activations_one_stays_active: "2.4" "3.ActivateConfiguration",
        apps_without_a_number_are_told_apart_by_name: "1.configurations" "3.GetConfiguration",
        a_numbered_app_is_found_by_its_name_too: "3.GetConfiguration" "3.ListConfigurations",
        a_history_is_listed_newest_first_in_pages: "3.ListConfigurations" "3.errors.tokens" "3.pages.keyset",
        a_page_of_configurations_ends_early_at_4_mib: "3.bounds.reply" "3.ListConfigurations",
        a_difference_is_a_json_patch: "3.DiffConfigurations" "3.bounds.reply",
        step_graphs_hold_together: "3.PublishConfiguration",
        bad_requests_about_configurations_name_every_field: "3.bounds.names" "3.errors.bad_request",
        a_configuration_makes_a_plan: "3.PlanSteps",
        an_execution_records_its_configuration_version: "1.executions" "2.3",
        a_put_configuration_is_kept_as_it_is: "3.put",
        every_lookup_is_served_by_an_index: "1.indexes" "3.CheckIndexes",
    }
    artifacts {
        an_uploaded_artifact_has_every_field_that_was_sent: "1.artifacts" "3.UploadArtifact",
        bytes_of_every_length_come_back: "3.UploadArtifact" "3.DownloadArtifact",
        declared_size_and_digest_are_enforced: "3.UploadArtifact",
        a_broken_upload_leaves_nothing_behind: "3.UploadArtifact",
        nothing_is_visible_before_the_last_byte: "3.UploadArtifact",
        the_same_upload_again_is_the_stored_artifact: "3.UploadArtifact",
        racing_uploads_of_the_same_bytes_are_stored_once: "3.UploadArtifact",
        an_upload_goes_on_where_it_broke_off: "3.GetUpload" "3.UploadArtifact",
        an_upload_goes_on_through_another_server: "3.GetUpload",
        an_upload_goes_on_from_no_other_place: "3.GetUpload",
        an_upload_id_belongs_to_its_description: "3.GetUpload",
        an_upload_whose_answer_was_lost_is_found: "3.GetUpload",
        a_new_connection_takes_an_upload_over: "3.GetUpload",
        another_artifact_never_takes_an_upload_over: "3.GetUpload",
        an_upload_that_does_not_go_on_expires: "3.GetUpload",
        a_graceful_shutdown_ends_a_download: "3.DownloadArtifact" "4.8",
        a_download_may_be_of_a_part: "3.DownloadArtifact",
        bytes_that_are_damaged_or_gone_are_data_loss: "3.DownloadArtifact",
        artifacts_are_listed_newest_first: "3.ListArtifacts" "3.errors.tokens",
        a_deleted_artifact_is_gone_with_its_bytes: "3.DeleteArtifact",
        a_download_of_what_is_deleted_meanwhile_says_so: "3.DeleteArtifact",
        bytes_go_with_their_execution: "3.DeleteExecution" "3.DeleteExecution.whole",
        names_of_artifacts_are_data: "3.UploadArtifact",
        artifacts_are_bounded: "3.bounds.artifacts" "3.errors.bad_request",
        an_execution_has_a_bounded_number_of_artifacts: "3.bounds.artifacts",
        an_upload_that_races_a_delete_leaves_nothing_behind: "2.4" "3.UploadArtifact",
        a_whole_artifact_record_is_kept_as_it_is: "3.put" "1.artifacts",
        a_record_never_leads_to_bytes_of_others: "3.DownloadArtifact" "3.DeleteArtifact",
    }
    cut_streams {
        an_upload_that_is_given_up_is_no_artifact: "3.cut" "3.UploadArtifact" "3.GetUpload",
        an_upload_past_its_deadline_is_no_artifact: "3.cut" "3.UploadArtifact" "3.GetUpload",
        an_upload_whose_connection_closes_is_no_artifact: "3.cut" "3.UploadArtifact" "3.GetUpload",
        a_cut_stream_of_metrics_stores_what_was_read: "3.cut",
        a_cut_ingest_applies_what_was_read: "3.cut",
    }
    ownership {
        importing_a_record_gives_no_right_to_the_bytes_it_names: "3.DownloadArtifact" "3.DeleteArtifact" "3.put",
        a_record_of_another_program_has_the_bytes_it_names: "3.DownloadArtifact" "3.DeleteArtifact",
        unfinished_uploads_go_with_their_execution: "3.DeleteExecution" "3.GetUpload",
    }
    deletion {
        the_full_view_and_the_snapshot_have_the_artifacts: "3.GetExecution" "4.artifacts",
        artifacts_are_told_when_they_come_and_go: "4.artifacts",
        deleting_takes_the_artifacts_along: "3.DeleteExecution" "4.4",
        what_is_being_deleted_is_there_for_nobody: "3.DeleteExecution.whole",
        a_delete_that_was_cut_short_is_ended_by_the_server: "3.DeleteExecution.whole",
        no_step_outlives_a_delete_on_a_busy_server: "2.4" "3.DeleteExecution.whole",
        a_great_execution_is_deleted_beside_other_writes: "3.DeleteExecution" "4.4",
        writes_after_a_delete_in_one_stream_find_the_id_free: "3.DeleteExecution" "3.Ingest",
    }
    mirror {
        a_mirror_is_run_by_one_and_keeps_its_place: "17.4",
        a_mirror_ends_once_it_was_compared_and_nothing_is_missing: "17.6",
        once_a_mirror_has_ended_this_server_looks_after_what_it_brought: "17.6" "2.9",
        an_export_goes_on_with_what_changes: "17.4",
        what_is_gone_at_its_source_goes_here: "17.3" "17.4",
    }
    mirrored {
        only_a_greater_place_replaces_a_record: "17.3",
        what_others_changed_is_not_overwritten: "17.3",
        of_racing_mirrors_the_greatest_place_stays: "17.3",
        artifacts_and_configurations_are_replaced_too: "17.3" "3.put",
        what_is_alive_at_its_source_is_not_ended_here: "17.3" "2.9",
        only_whole_records_are_mirrored: "17.3",
    }
    export {
        everything_is_exported_as_it_is_stored: "17.2",
        an_export_goes_on_after_any_of_its_messages: "17.2",
        what_changes_during_an_export_is_in_it: "17.2",
        executions_come_and_go_with_the_filter_of_an_export: "17.2",
        bad_exports_are_refused: "17.2",
        an_export_that_history_no_longer_covers_begins_anew: "17.2",
    }
    verify {
        equal_records_have_equal_digests_on_every_server: "17.5",
        every_difference_is_in_the_digest_of_its_record: "17.5",
        digests_of_a_filter_and_by_name: "17.5",
        bad_questions_about_digests_are_refused: "17.5",
        digests_are_told_only_of_what_a_caller_may_see: "17.5",
    }
    rollups {
        every_kind_of_change_is_counted: "3.rollups",
        what_retention_deletes_no_longer_counts: "3.rollups",
        old_fingerprints_are_made_anew: "3.ListTopErrors",
        counting_goes_on_after_a_restart: "3.rollups",
    }
    retention {
        what_is_too_old_goes_with_everything_it_has: "1.retention" "3.RunRetention",
        what_runs_or_is_pinned_is_kept_with_everything_it_has: "1.retention.kept",
        old_steps_and_artifacts_go_while_their_execution_stays: "1.retention" "4.4",
        rules_keep_some_longer_or_shorter: "1.retention.rules",
        zero_keeps_for_ever: "1.retention",
        a_dry_run_counts_what_a_run_deletes: "3.RunRetention",
        one_run_at_a_time: "3.RunRetention",
        it_runs_by_itself: "1.retention",
        who_pins_just_then_keeps_it: "1.retention.kept" "2.4",
    }
    search {
        texts_of_every_kind_are_found: "3.Search",
        words_phrases_prefixes_and_exclusions_are_told_apart: "3.Search",
        the_index_follows_updates_and_deletes: "3.Search" "3.search.freshness",
        what_came_while_search_was_off_is_found_once_it_is_on: "3.search.freshness",
        a_bad_query_is_named_with_its_limit: "3.errors.bad_request" "3.bounds.search",
        what_is_too_long_is_indexed_up_to_the_limit_and_says_so: "3.bounds.search",
    }
    access {
        every_method_is_decided_by_role: "8.roles",
        what_a_caller_is_told_about_itself_is_true: "7.WhoAmI",
        a_write_within_a_call_needs_what_the_call_by_itself_needs: "8.1",
    }
    scopes {
        absent_and_forbidden_cannot_be_told_apart: "8.3",
        a_new_record_outside_the_scope_is_refused: "8.2" "8.3",
        lists_counts_reports_and_search_are_as_if_alone: "8.3.alone",
        a_watch_tells_only_of_the_scope: "8.3",
        a_foreign_change_of_an_app_counts_within_a_second: "8.3",
    }
    keys {
        a_key_is_made_listed_rotated_and_revoked: "7.keys",
        nobody_gives_more_than_they_have: "7.grants",
        bad_credentials_are_refused_alike_and_bounded: "7.bad" "8.6",
        a_key_calls_no_more_often_than_it_may: "8.6",
    }
    audit {
        everything_about_security_is_recorded: "9.security" "9.record",
        what_cannot_be_recorded_is_not_done: "9.2",
        every_flaw_of_a_chain_is_found_by_name: "9.3" "9.1",
        records_are_listed_filtered_and_paged: "9.AuditService",
        every_write_is_recorded_with_its_batch: "9.writes" "9.2",
        every_read_and_stream_is_recorded_where_all_is: "9.all",
        each_process_has_a_chain_of_its_own: "9.1",
        records_go_for_their_age: "9.4",
    }
    notifications {
        every_transition_is_told_once_and_in_order: "16.events" "16.order",
        only_what_was_asked_for_is_told: "16.events",
        a_notification_says_what_happened_and_no_more: "16.body" "16.signature",
        a_secret_is_rotated_and_the_one_before_signs_too: "16.signature",
        a_failed_delivery_is_tried_again_under_the_same_id: "16.retries" "16.order",
        what_was_tried_too_often_is_dead_and_can_be_delivered_again: "16.retries" "16.order",
        a_receiver_that_is_gone_is_told_nothing_more: "16.retries",
        a_receiver_that_hangs_delays_no_other: "16.bounds",
        too_much_that_is_undelivered_waits_in_the_log: "16.bounds",
        what_history_has_lost_meanwhile_is_a_gap: "16.bounds",
        it_goes_on_after_a_restart: "16.events",
        one_server_tells_what_happened_through_all: "16.events",
        subscriptions_are_made_listed_changed_and_deleted: "16.subscriptions" "3.errors.tokens",
        every_bad_field_of_a_subscription_is_named: "16.addresses" "3.errors.bad_request",
        a_name_that_leads_inside_gets_nothing: "16.addresses",
        who_made_it_decides_what_it_is_told: "16.maker",
        what_is_gone_already_is_told_all_the_same: "16.events",
    }
    service {
        reflection_lists_every_service_with_its_imports: "3.reflection",
        the_names_are_those_of_the_contract: "3.names",
        health_says_serving: "3.health" "5.ready",
        every_method_of_the_descriptors_is_served: "3.names" "3.health",
        the_server_says_what_it_is: "3.GetServerInfo" "3.bounds.page",
    }
}
