"""A fleet and a recorder for an application of FastAPI or Starlette.

app = FastAPI(lifespan=fleet_lifespan())

@app.get("/models/count")
def count(fleet: FleetOfApp) -> int:
    return fleet.count().active
"""
