/** What the server takes. Asked of it once there is a connection; until then what it takes by default. */

/** The limits that matter to reporting; names are those of GetServerInfo. */
export interface Limits {
  name_characters: number;
  execution_id_characters: number;
  message_characters: number;
  metadata_bytes: number;
  error_message_bytes: number;
  stack_trace_bytes: number;
  payload_bytes: number;
}

/** The documented defaults. */
export const DEFAULT_LIMITS: Readonly<Limits> = {
  name_characters: 256,
  execution_id_characters: 128,
  message_characters: 4096,
  metadata_bytes: 256 * 1024,
  error_message_bytes: 64 * 1024,
  stack_trace_bytes: 256 * 1024,
  payload_bytes: 6 * 1024 * 1024,
};

/** Takes over what a server says of its limits. */
export function limitsOf(said: Readonly<Record<string, bigint>>): Limits {
  const limits = { ...DEFAULT_LIMITS };
  for (const name of Object.keys(limits) as (keyof Limits)[]) {
    const value = said[name];
    if (value !== undefined && value > 0n) limits[name] = Number(value);
  }
  return limits;
}
