#!/usr/bin/env bash
# Follow events durably with nothing but bash: the NATS protocol is lines of text, and JetStream is requests in JSON.
#
#     NATS=127.0.0.1:4222 examples/subscribe.sh [TYPE [DURABLE [LIMIT]]]
#
# Prints type, id, stream and body of each event, separated by tabs. It ends with status 1 when the connection is lost;
# start it again and it goes on where it was. After a kill the last event may come twice: its id tells.
# Protocol: https://docs.nats.io/reference/reference-protocols/nats-protocol
set -euo pipefail
export LC_ALL=C # lengths are in bytes

type=${1:-recorrido.ingest.v1.InteractionRecorded} durable=${2:-example-bash} limit=${3:-0}
IFS=: read -r host port <<<"${NATS:-127.0.0.1:4222}"
exec 3<>"/dev/tcp/$host/$port"

send() { printf '%s\r\n' "$@" >&3; }
publish() { send "PUB $1 ${3:+$3 }${#2}" "$2"; } # subject, body, where to answer
receive() { IFS= read -r -N "$(($1 + 2))" -u 3 REPLY && REPLY=${REPLY%$'\r\n'}; } # so many bytes and the line's end
next() { publish "\$JS.API.CONSUMER.MSG.NEXT.RECORRIDO.$durable" '{"batch":1,"expires":30000000000}' "$inbox.next"; }
header() { # the value of one header
    local value=${headers#*$'\r\n'"$1: "}
    [ "$value" = "$headers" ] || printf '%s' "${value%%$'\r\n'*}"
}

inbox="_INBOX.$$.$RANDOM$RANDOM"
send 'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,"lang":"bash","version":"1","protocol":1}' "SUB $inbox.* 1"
# Made once, then found again: the server keeps it, with how far it is. Times are in nanoseconds.
publish "\$JS.API.CONSUMER.DURABLE.CREATE.RECORRIDO.$durable" '{"stream_name":"RECORRIDO","config":{
    "durable_name":"'"$durable"'","filter_subject":"'"$type"'.>",
    "deliver_policy":"all","ack_policy":"explicit","ack_wait":30000000000}}' "$inbox.created"

seen=0
while IFS= read -r -u 3 line; do
    read -ra words <<<"${line%$'\r'}"
    case ${words[0]:-} in
    PING) send PONG ;;
    -ERR) echo "$line" >&2 && exit 1 ;;
    MSG) # an answer without headers: the consumer is there, or not
        receive "${words[-1]}"
        if [[ $REPLY == *'"error"'* ]]; then echo "$REPLY" >&2 && exit 1; fi
        if [[ ${words[1]} == "$inbox.created" ]]; then next; fi
        ;;
    HMSG) # subject, subscription, [where to acknowledge,] bytes of headers, bytes in all
        receive "${words[-1]}"
        if [[ $REPLY == "NATS/1.0 503"* ]]; then echo "JetStream or the consumer is not there" >&2 && exit 1; fi
        if [ "${#words[@]}" -eq 5 ]; then next && continue; fi # another status: nothing came in 30 s
        headers=${REPLY:0:${words[-2]}} body=${REPLY:${words[-2]}}
        printf '%s\t%s\t%s\t%s\n' "$(header ce-type)" "$(header ce-id)" "$(header ce-subject)" "$body"
        # Only now: what is not acknowledged comes again.
        publish "${words[3]}" +ACK
        seen=$((seen + 1))
        if [ "$seen" -eq "$limit" ]; then send PING && exit 0; fi
        next
        ;;
    esac
done
echo "the connection was lost" >&2
exit 1
