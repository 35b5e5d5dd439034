"""Routes of the demo's buttons: kill a process that the page needs, and start it again."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Request

from demo.site.processes import Breakable

router = APIRouter(prefix="/demo/processes")


def the_breakables(request: Request) -> list[Breakable]:
    """What may be killed."""
    breakables: list[Breakable] = request.app.state.breakables
    return breakables


Breakables = Annotated[list[Breakable], Depends(the_breakables)]


@router.get("")
async def processes(breakables: Breakables) -> list[dict[str, Any]]:
    """Say which run."""
    return [{"name": breakable.name, "pid": breakable.pid} for breakable in breakables]


@router.post("/{name}/{action}", status_code=204)
async def act(name: str, action: Literal["kill", "start"], breakables: Breakables) -> None:
    """Kill or start one."""
    breakable = next((each for each in breakables if each.name == name), None)
    if breakable is None:
        raise HTTPException(404, "There is no such process.")
    # In the event loop, on purpose: a process must be started by the main thread, whose end ends it.
    if action == "kill":
        breakable.kill()
    else:
        breakable.start()
