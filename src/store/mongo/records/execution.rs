//! Executions as MongoDB documents and back. Field names and types are shared with other programs, so writing is exact
//! and reading is tolerant.

use bson::oid::ObjectId;
use bson::raw::{RawDocument, RawDocumentBuf, cstr};
use bson::{Document, rawdoc};

use super::guard::{
    Difference, Guard, Rest, Update, guard_date, guard_document, guard_metadata, guard_revision,
    guard_status,
};
use super::parts::{digests, error_info, error_message, message, read_digests, read_error};
use crate::domain::{Digests, Execution, ExecutionStatus};
use crate::store::Result;
use crate::store::mongo::db::values::{
    corrupt, date, integer, millis, nullable, object, present, raw, small, text,
};
use crate::store::mongo::names::EXECUTIONS;

/// A new execution.
pub fn insert(record: &Execution) -> Result<RawDocumentBuf> {
    let mut to = RawDocumentBuf::new();
    to.append(cstr!("_id"), ObjectId::new());
    to.append(cstr!("execution_id"), record.execution_id.as_str());
    nullable(&mut to, cstr!("app_id"), record.app_id);
    to.append(cstr!("app_name"), record.app_name.as_str());
    nullable(&mut to, cstr!("sub_app_id"), record.sub_app_id);
    nullable(&mut to, cstr!("sub_app_name"), record.sub_app_name.as_deref());
    nullable(&mut to, cstr!("user_id"), record.user_id.as_deref());
    nullable(&mut to, cstr!("status"), record.status.map(ExecutionStatus::as_str));
    nullable(&mut to, cstr!("started_at"), record.started_at.map(date));
    nullable(&mut to, cstr!("completed_at"), record.completed_at.map(date));
    nullable(&mut to, cstr!("duration_ms"), record.duration_ms);
    nullable(&mut to, cstr!("error"), message(record.error.as_ref()));
    to.append(cstr!("metadata"), raw(&record.metadata)?);
    nullable(&mut to, cstr!("created_at"), record.created_at.map(date));
    nullable(&mut to, cstr!("updated_at"), record.updated_at.map(date));
    to.append(cstr!("revision"), record.revision);
    present(&mut to, cstr!("error_info"), error_info(record.error.as_ref())?);
    present(&mut to, cstr!("heartbeat_timeout_ms"), record.heartbeat_timeout_ms);
    present(&mut to, cstr!("last_heartbeat_at"), record.last_heartbeat_at.map(date));
    present(&mut to, cstr!("cancel_requested_at"), record.cancel_requested_at.map(date));
    present(&mut to, cstr!("cancel_reason"), record.cancel_reason.as_deref());
    present(&mut to, cstr!("parent_execution_id"), record.parent_execution_id.as_deref());
    present(&mut to, cstr!("pinned"), record.pinned);
    present(&mut to, cstr!("configuration_version"), record.configuration_version.as_deref());
    present(&mut to, cstr!("update_sequence"), record.update_sequence);
    present(&mut to, cstr!("digests"), digests(&record.digests));
    to.append(cstr!("last_change"), record.last_change().as_str());
    Ok(to)
}

/// An update of an execution from one state to another, which changes nothing unless the document still is what
/// the decision was made on. Another program leaves `revision` alone, so everything that was read is guarded.
pub fn update(before: &Execution, after: &Execution, guard: Guard, mark: i64) -> Result<Update> {
    let mut query = rawdoc! { "execution_id": before.execution_id.as_str() };
    let mut exact = guard == Guard::Whole;
    guard_revision(&mut query, before.revision);
    guard_status(
        &mut query,
        before.status.map(ExecutionStatus::as_str),
        &ExecutionStatus::ALL.map(ExecutionStatus::as_str),
    );
    guard_date(&mut query, cstr!("started_at"), before.started_at);
    guard_date(&mut query, cstr!("updated_at"), before.updated_at);
    if before.metadata != after.metadata {
        guard_document(&mut query, cstr!("metadata"), &before.metadata)?;
    }
    if before.last_heartbeat_at != after.last_heartbeat_at
        || (after.ended_for_silence() && !before.ended_for_silence())
    {
        guard_date(&mut query, cstr!("last_heartbeat_at"), before.last_heartbeat_at);
    }
    if guard == Guard::Whole {
        if before.metadata == after.metadata {
            exact = guard_metadata(&mut query, &before.metadata)?;
        }
        // A heartbeat is no change: that another server stored one makes nobody decide again.
        let mut rest = Rest(&mut query);
        rest.value(cstr!("app_id"), before.app_id, after.app_id);
        rest.text(cstr!("app_name"), Some(&before.app_name), Some(&after.app_name));
        rest.value(cstr!("sub_app_id"), before.sub_app_id, after.sub_app_id);
        rest.text(cstr!("sub_app_name"), before.sub_app_name.as_ref(), after.sub_app_name.as_ref());
        rest.text(cstr!("user_id"), before.user_id.as_ref(), after.user_id.as_ref());
        rest.date(cstr!("completed_at"), before.completed_at, after.completed_at);
        rest.value(cstr!("duration_ms"), before.duration_ms, after.duration_ms);
        rest.error(before.error.as_ref(), after.error.as_ref())?;
        rest.date(cstr!("created_at"), before.created_at, after.created_at);
        rest.value(
            cstr!("heartbeat_timeout_ms"),
            before.heartbeat_timeout_ms,
            after.heartbeat_timeout_ms,
        );
        rest.date(
            cstr!("cancel_requested_at"),
            before.cancel_requested_at,
            after.cancel_requested_at,
        );
        rest.text(
            cstr!("cancel_reason"),
            before.cancel_reason.as_ref(),
            after.cancel_reason.as_ref(),
        );
        rest.text(
            cstr!("parent_execution_id"),
            before.parent_execution_id.as_ref(),
            after.parent_execution_id.as_ref(),
        );
        rest.value(cstr!("pinned"), before.pinned, after.pinned);
        rest.text(
            cstr!("configuration_version"),
            before.configuration_version.as_ref(),
            after.configuration_version.as_ref(),
        );
        rest.value(cstr!("update_sequence"), before.update_sequence, after.update_sequence);
    }

    let mut to = Difference::new();
    let status = after.status.map(ExecutionStatus::as_str);
    to.nullable(cstr!("status"), before.status != after.status, status);
    to.nullable(
        cstr!("completed_at"),
        before.completed_at != after.completed_at,
        after.completed_at.map(date),
    );
    to.nullable(cstr!("duration_ms"), before.duration_ms != after.duration_ms, after.duration_ms);
    to.error(before.error.as_ref(), after.error.as_ref())?;
    if before.metadata != after.metadata {
        to.set.append(cstr!("metadata"), raw(&after.metadata)?);
    }
    to.nullable(
        cstr!("updated_at"),
        before.updated_at != after.updated_at,
        after.updated_at.map(date),
    );
    to.present(
        cstr!("last_heartbeat_at"),
        before.last_heartbeat_at != after.last_heartbeat_at,
        after.last_heartbeat_at.map(date),
    );
    to.present(
        cstr!("cancel_requested_at"),
        before.cancel_requested_at != after.cancel_requested_at,
        after.cancel_requested_at.map(date),
    );
    to.present(
        cstr!("cancel_reason"),
        before.cancel_reason != after.cancel_reason,
        after.cancel_reason.as_deref(),
    );
    to.present(cstr!("pinned"), before.pinned != after.pinned, after.pinned);
    to.present(
        cstr!("update_sequence"),
        before.update_sequence != after.update_sequence,
        after.update_sequence,
    );
    to.present(
        cstr!("deleted_at"),
        before.deleted_at != after.deleted_at,
        after.deleted_at.map(date),
    );
    if before.revision != after.revision {
        to.set.append(cstr!("revision"), after.revision);
        to.set.append(cstr!("last_change"), after.last_change().as_str());
        to.digests(&before.digests, &after.digests);
        to.made(after.revision, mark);
    }
    Ok(Update { statement: to.statement(query, &before.execution_id), exact })
}

/// An execution as some program stored it. Only `execution_id` has to be readable.
pub fn read(raw: &RawDocument) -> Result<Execution> {
    let mut execution_id = None;
    let mut error = None;
    let mut info = None;
    let mut record = Execution {
        execution_id: String::new(),
        app_id: None,
        app_name: String::new(),
        sub_app_id: None,
        sub_app_name: None,
        user_id: None,
        status: None,
        started_at: None,
        completed_at: None,
        duration_ms: None,
        error: None,
        metadata: Document::new(),
        created_at: None,
        updated_at: None,
        revision: 0,
        heartbeat_timeout_ms: None,
        last_heartbeat_at: None,
        cancel_requested_at: None,
        cancel_reason: None,
        parent_execution_id: None,
        pinned: None,
        configuration_version: None,
        update_sequence: None,
        digests: Digests::default(),
        deleted_at: None,
    };
    for element in raw {
        let (key, value) = element.map_err(|_| corrupt(EXECUTIONS, raw, "document"))?;
        match key.as_str() {
            "execution_id" => execution_id = text(value),
            "app_id" => record.app_id = small(value),
            "app_name" => record.app_name = text(value).unwrap_or_default(),
            "sub_app_id" => record.sub_app_id = small(value),
            "sub_app_name" => record.sub_app_name = text(value),
            "user_id" => record.user_id = text(value),
            "status" => record.status = value.as_str().and_then(ExecutionStatus::parse),
            "started_at" => record.started_at = millis(value),
            "completed_at" => record.completed_at = millis(value),
            "duration_ms" => record.duration_ms = integer(value),
            "error" => error = error_message(value),
            "error_info" => info = value.as_document(),
            "metadata" => record.metadata = object(value),
            "created_at" => record.created_at = millis(value),
            "updated_at" => record.updated_at = millis(value),
            "revision" => record.revision = integer(value).unwrap_or(0),
            "heartbeat_timeout_ms" => record.heartbeat_timeout_ms = integer(value),
            "last_heartbeat_at" => record.last_heartbeat_at = millis(value),
            "cancel_requested_at" => record.cancel_requested_at = millis(value),
            "cancel_reason" => record.cancel_reason = text(value),
            "parent_execution_id" => record.parent_execution_id = text(value),
            "pinned" => record.pinned = value.as_bool(),
            "configuration_version" => record.configuration_version = text(value),
            "update_sequence" => record.update_sequence = integer(value),
            "digests" => record.digests = read_digests(value),
            "deleted_at" => record.deleted_at = millis(value),
            _ => {}
        }
    }
    record.execution_id = execution_id.ok_or_else(|| corrupt(EXECUTIONS, raw, "execution_id"))?;
    record.error = read_error(error, info);
    Ok(record)
}
