F=$(pgrep -f "fuzz[.]replay" | tr '\n' ' '); [ -n "$F" ] && kill -STOP $F
.venv/bin/python -m bench.profile_request --seconds 1.5 --workloads ${1:-tiny,vga,fullhd} 2>&1 | tail -${2:-26}
[ -n "$F" ] && kill -CONT $F
